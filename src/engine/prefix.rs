//! Names what lies in the blocks of the KV cache, so that equal beginnings are computed once.
//!
//! In: whose sequence it is, then its rows one by one. Out: a key for every whole block. It knows no
//! cache. Two blocks have the same key only if everything that their keys and values depend on is the same:
//! every row up to their end, and the adapter. The tenant is in it as well, so that no tenant can learn
//! from the time of an answer what another has asked.

use norma_adapters::{Digest, Generation};
use sha2::{Digest as _, Sha256};

use super::request::Request;
use super::scheduler::BlockKey;
use crate::preprocess::PromptToken;

/// A row of a sequence.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row<'a> {
    Token(u32),
    /// A row of an image's features; `image` is the digest of its pixels.
    Image {
        image: &'a Digest,
        patch: u32,
    },
}

/// A chain of SHA-256 digests, one link a block.
#[derive(Clone, Debug)]
pub(super) struct PrefixChain {
    link: Sha256,
    block_rows: usize,
    /// Rows of the block that is not whole yet.
    rows: usize,
    keys: Vec<BlockKey>,
}

impl PrefixChain {
    pub fn new(tenant: &str, generation: Option<&Generation>, block_rows: usize) -> Self {
        let mut link = Sha256::new();
        link.update((tenant.len() as u64).to_le_bytes());
        link.update(tenant);
        match generation {
            None => link.update([0]),
            Some(generation) => {
                link.update([1]);
                link.update(generation.digest().0);
            }
        }
        Self {
            link,
            block_rows,
            rows: 0,
            keys: Vec::new(),
        }
    }

    /// The chain of a request's prompt, whose images must all be there.
    pub fn of_prompt(request: &Request, block_rows: usize) -> Self {
        let generation = request.adapter.as_ref().map(|adapter| &adapter.generation);
        let mut chain = Self::new(&request.tenant, generation, block_rows);
        for row in &request.prompt {
            chain.push(match row {
                PromptToken::Text(token) => Row::Token(*token),
                PromptToken::Image { image, patch } => Row::Image {
                    image: request.images[*image as usize].digest(),
                    patch: *patch,
                },
            });
        }
        chain
    }

    /// The keys of all whole blocks so far.
    pub fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// One more row; the key of the block that it completes.
    pub fn push(&mut self, row: Row) -> Option<BlockKey> {
        match row {
            Row::Token(token) => {
                self.link.update([0]);
                self.link.update(token.to_le_bytes());
            }
            Row::Image { image, patch } => {
                self.link.update([1]);
                self.link.update(image.0);
                self.link.update(patch.to_le_bytes());
            }
        }
        self.rows += 1;
        if self.rows < self.block_rows {
            return None;
        }
        self.rows = 0;
        let digest = Digest(self.link.finalize_reset().into());
        self.link.update(digest.0);
        let key = BlockKey(digest);
        self.keys.push(key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_tenant_adapter_and_every_row_before() {
        let (first, second) = (Digest::of(b"1"), Digest::of(b"2"));
        let image = |image, patch| Row::Image { image, patch };
        let rows = [
            Row::Token(1),
            image(&first, 0),
            Row::Token(2),
            Row::Token(3),
            Row::Token(4),
        ];
        let of = |tenant: &str, generation: Option<&Generation>, rows: &[Row]| {
            let mut chain = PrefixChain::new(tenant, generation, 2);
            let keys: Vec<_> = rows.iter().filter_map(|row| chain.push(*row)).collect();
            assert_eq!(chain.keys(), keys);
            keys
        };
        let base = of("a", None, &rows);
        assert_eq!(base.len(), 2);
        assert_eq!(base, of("a", None, &rows));
        let generation = Generation::of(b"g");
        let mut changed = rows;
        changed[0] = Row::Token(9);
        let mut another = rows;
        another[1] = image(&second, 0);
        let mut moved = rows;
        moved[1] = image(&first, 1);
        for other in [
            of("b", None, &rows),
            of("a", Some(&generation), &rows),
            of("a", None, &changed),
            of("a", None, &another),
            of("a", None, &moved),
        ] {
            assert!(base.iter().all(|key| !other.contains(key)));
        }
        let mut later = rows;
        later[3] = Row::Token(9);
        let later = of("a", None, &later);
        assert_eq!(later[0], base[0]);
        assert_ne!(later[1], base[1]);
    }
}
