//! Adapters in memory, by generation, up to a number of bytes.
//!
//! In: adapters read from the store. Out: the same without a disk in the way. It knows no tenant: who may
//! use a generation is asked of the registry before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use norma_adapters::{AdapterValues, Calibration, Generation, Task};

/// What a request needs of an adapter.
#[derive(Clone, Debug)]
pub struct LoadedAdapter {
    /// Which content it is.
    pub generation: Generation,
    /// A whole row.
    pub values: AdapterValues,
    /// How to read confidence out of its answers.
    pub calibration: Option<Calibration>,
    /// What it is for.
    pub task: Task,
}

impl LoadedAdapter {
    fn bytes(&self) -> usize {
        size_of_val(self.values.row())
    }
}

/// See the module.
#[derive(Debug)]
pub struct AdapterCache {
    limit: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Generation, Entry>,
    bytes: usize,
    /// Grows with every use.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    adapter: Arc<LoadedAdapter>,
    /// The alias under which it was last asked for, for metrics.
    name: Option<String>,
    used: u64,
}

impl AdapterCache {
    /// An empty cache for `limit` bytes. One adapter is kept in any case.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            inner: Mutex::default(),
        }
    }

    /// An adapter, if it is here; it counts as used now, under this name.
    pub fn get(&self, generation: &Generation, name: Option<&str>) -> Option<Arc<LoadedAdapter>> {
        let inner = &mut *self.lock();
        inner.clock += 1;
        let entry = inner.entries.get_mut(generation)?;
        entry.used = inner.clock;
        if let Some(name) = name
            && entry.name.as_deref() != Some(name)
        {
            entry.name = Some(name.to_owned());
        }
        Some(Arc::clone(&entry.adapter))
    }

    /// Puts an adapter in, and those longest unused out.
    pub fn put(&self, adapter: Arc<LoadedAdapter>, name: Option<&str>) {
        let inner = &mut *self.lock();
        inner.clock += 1;
        let (generation, bytes) = (adapter.generation, adapter.bytes());
        let entry = Entry {
            adapter,
            name: name.map(str::to_owned),
            used: inner.clock,
        };
        inner.bytes += bytes;
        if let Some(old) = inner.entries.insert(generation, entry) {
            inner.bytes -= old.adapter.bytes();
        }
        while inner.bytes > self.limit && inner.entries.len() > 1 {
            let oldest = inner
                .entries
                .iter()
                .min_by_key(|(_, entry)| entry.used)
                .map(|(g, _)| *g);
            let Some(old) = oldest.and_then(|oldest| inner.entries.remove(&oldest)) else {
                return;
            };
            inner.bytes -= old.adapter.bytes();
        }
    }

    /// The name under which a generation was last asked for.
    pub fn name(&self, generation: &Generation) -> Option<String> {
        self.lock().entries.get(generation)?.name.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use norma_adapters::{Part, Scope, Site, SiteKind, SiteTable};

    fn adapter(name: &[u8]) -> Arc<LoadedAdapter> {
        let site = Site {
            name: "language_model.model.norm".into(),
            kind: SiteKind::RmsNorm,
            width: 8,
            part: Part::Language,
            used: true,
        };
        let table = SiteTable::new(vec![site]).unwrap();
        let values = AdapterValues::new(&table, vec![1.0; table.row_len()], Scope::All).unwrap();
        let generation = Generation::of(name);
        Arc::new(LoadedAdapter {
            generation,
            values,
            calibration: None,
            task: Task::Vqa,
        })
    }

    #[test]
    fn the_longest_unused_goes_first_and_bytes_stay_within_the_limit() {
        let (a, b, c) = (adapter(b"a"), adapter(b"b"), adapter(b"c"));
        let cache = AdapterCache::new(2 * a.bytes());
        cache.put(Arc::clone(&a), Some("first"));
        cache.put(Arc::clone(&b), None);
        assert!(cache.get(&a.generation, None).is_some());
        cache.put(Arc::clone(&c), None);
        assert!(cache.get(&b.generation, None).is_none());
        assert!(
            cache.get(&a.generation, None).is_some() && cache.get(&c.generation, None).is_some()
        );
        assert_eq!(cache.name(&a.generation).as_deref(), Some("first"));
        cache.put(Arc::clone(&c), None);
        assert_eq!(cache.lock().bytes, 2 * a.bytes());
        let tiny = AdapterCache::new(0);
        tiny.put(Arc::clone(&a), None);
        assert!(tiny.get(&a.generation, None).is_some());
    }
}
