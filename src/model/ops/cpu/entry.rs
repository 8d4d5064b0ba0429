//! The way into code that is compiled for an instruction set.
//!
//! In: a [`Kernel`], written once for all sets. Out: what it computes, with the instructions of a set that
//! the machine has. The compiler uses a set's instructions only in functions marked for it; whatever is
//! inlined into them is compiled for the set too, and nothing else. So a kernel and what it calls in its
//! loops are `#[inline(always)]`, and closures that handle vectors, which cannot be, have no place there.

#[cfg(target_arch = "x86_64")]
use super::instruction_set::{Avx2, Avx512};
use super::instruction_set::{Machine, Portable};
use super::vector_math::VectorMath;

/// Work that is written once and compiled for each instruction set.
pub trait Kernel {
    /// What comes out.
    type Output;

    /// Does the work. Implementations are `#[inline(always)]`.
    fn run<S: VectorMath>(self, isa: S) -> Self::Output;
}

/// A token that leads into code compiled for its set.
pub trait Entry: Copy + Send + Sync {
    /// Runs the kernel as one function that is compiled for the set.
    fn enter<K: Kernel>(self, kernel: K) -> K::Output;
}

impl Machine {
    /// Runs the kernel with what the machine has.
    pub fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(isa) => isa.enter(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(isa) => isa.enter(kernel),
            Self::Portable(isa) => isa.enter(kernel),
        }
    }
}

impl<const FUSED: bool> Entry for Portable<FUSED> {
    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "functions compiled for an instruction set")]
impl Entry for Avx512 {
    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token says that the machine has AVX-512F.
        unsafe { enter_avx512(self, kernel) }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "functions compiled for an instruction set")]
impl Entry for Avx2 {
    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the token says that the machine has AVX2 and FMA.
        unsafe { enter_avx2(self, kernel) }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn enter_avx512<K: Kernel>(isa: Avx512, kernel: K) -> K::Output {
    kernel.run(isa)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn enter_avx2<K: Kernel>(isa: Avx2, kernel: K) -> K::Output {
    kernel.run(isa)
}

/// What the kernel computes with each set that fuses and that the machine has, the portable one first. All
/// must agree to the bit.
#[cfg(test)]
pub fn on_every_set<K: Kernel + Copy>(kernel: K) -> Vec<K::Output> {
    let mut outputs = vec![Portable::<true>.enter(kernel)];
    for machine in Machine::every() {
        if !matches!(machine, Machine::Portable(_)) {
            outputs.push(machine.enter(kernel));
        }
    }
    outputs
}
