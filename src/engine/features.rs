//! Image features that may be wanted again, up to a number of bytes.
//!
//! In: features as the model made them, on its device. Out: the same tensors, for the same tenant, image and vision
//! values: nothing is copied, and the bytes counted are those that the device holds. It knows no model.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::Tensor;
use norma_adapters::Digest;

/// Everything that an image's features depend on, and who may know of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FeatureKey {
    pub tenant: Arc<str>,
    /// Of the pixels as the model sees them.
    pub image: Digest,
    /// Of the norm values before the decoder, so that adapters that share them share features.
    pub vision: Digest,
}

/// See the module.
#[derive(Debug)]
pub(super) struct FeatureCache {
    limit: usize,
    entries: HashMap<FeatureKey, Entry>,
    /// Keys by their last use.
    by_use: BTreeMap<u64, FeatureKey>,
    bytes: usize,
    uses: u64,
    /// Images looked up and found since the start.
    pub queries: u64,
    pub hits: u64,
}

#[derive(Debug)]
struct Entry {
    features: Tensor,
    used: u64,
}

impl FeatureCache {
    /// An empty cache for `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            entries: HashMap::new(),
            by_use: BTreeMap::new(),
            bytes: 0,
            uses: 0,
            queries: 0,
            hits: 0,
        }
    }

    /// Features that are here; they count as used now.
    pub fn get(&mut self, key: &FeatureKey) -> Option<Tensor> {
        self.queries += 1;
        let entry = self.entries.get_mut(key)?;
        self.hits += 1;
        self.uses += 1;
        let key = self.by_use.remove(&entry.used)?;
        entry.used = self.uses;
        self.by_use.insert(self.uses, key);
        Some(entry.features.clone())
    }

    /// Puts features in, and those longest unused out. What does not fit at all is not kept.
    pub fn put(&mut self, key: FeatureKey, features: &Tensor) {
        let size = bytes(features);
        if size > self.limit || self.entries.contains_key(&key) {
            return;
        }
        while self.bytes + size > self.limit
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            if let Some(old) = self.entries.remove(&oldest) {
                self.bytes -= bytes(&old.features);
            }
        }
        self.uses += 1;
        self.bytes += size;
        self.by_use.insert(self.uses, key.clone());
        let entry = Entry {
            features: features.clone(),
            used: self.uses,
        };
        self.entries.insert(key, entry);
    }

    /// Bytes of all that is here.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn bytes(features: &Tensor) -> usize {
    features.elem_count() * features.dtype().size_in_bytes()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn the_longest_unused_goes_first_and_bytes_stay_within_the_limit() {
        let key = |tenant: &str, image: u8| FeatureKey {
            tenant: tenant.into(),
            image: Digest::of(&[image]),
            vision: Digest::of(b"base"),
        };
        let features = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let mut cache = FeatureCache::new(2 * 24);
        cache.put(key("a", 1), &features);
        cache.put(key("a", 2), &features);
        assert!(cache.get(&key("b", 1)).is_none(), "another tenant's");
        assert!(cache.get(&key("a", 1)).is_some());
        cache.put(key("a", 3), &features);
        assert!(cache.get(&key("a", 2)).is_none());
        assert!(cache.get(&key("a", 1)).is_some() && cache.get(&key("a", 3)).is_some());
        assert_eq!((cache.bytes(), cache.queries, cache.hits), (48, 5, 3));
        let large = Tensor::zeros((5, 3), DType::F32, &Device::Cpu).unwrap();
        cache.put(key("a", 4), &large);
        assert!(cache.get(&key("a", 4)).is_none() && cache.bytes() == 48);
    }
}
