//! Hints about memory: they change how fast it is, never what it holds.

/// Asks for large pages where the system gives them on request. Weights, keys and values are read from end
/// to end in every step, and looking up a small page costs about as much as reading a part of it. To be
/// called before the memory is first touched.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a system call")]
pub fn prefer_large_pages<T>(memory: &[T]) {
    const PAGE: usize = 4096;
    let start = (memory.as_ptr() as usize).next_multiple_of(PAGE);
    let end = memory.as_ptr() as usize + size_of_val(memory);
    if end > start {
        // SAFETY: the range lies within `memory`; the advice does not change its contents. That it may be
        // refused does not matter.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

/// Other systems decide for themselves.
#[cfg(not(target_os = "linux"))]
pub fn prefer_large_pages<T>(_memory: &[T]) {}

/// `n` times the same value, in large pages if possible.
pub fn filled<T: Clone>(value: T, n: usize) -> Vec<T> {
    let mut memory = Vec::with_capacity(n);
    prefer_large_pages(memory.spare_capacity_mut());
    memory.resize(n, value);
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_change_nothing() {
        for n in [0, 1, 1000, 3_000_000] {
            let memory = filled(1.5f32, n);
            prefer_large_pages(&memory);
            assert!(memory.len() == n && memory.iter().all(|value| *value == 1.5));
        }
    }
}
