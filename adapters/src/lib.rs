//! Adapters: tiny sets of norm values for one frozen base, from an upload's first byte to a slot.
//!
//! In: the list of norm sites that a base declares, and foreign files. Out: checked rows of
//! values, who may use which under what name, and which slot of a bank holds which. Knows no
//! model, no tensor library, no HTTP and no async runtime, so that each rule here can be tested
//! alone.
//!
//! The story, in the order of an adapter's life:
//!
//! 1. [`site`]: a base declares its norms as a [`SiteTable`]; it fixes where each gain and bias
//!    lies in a row. [`names`] turns the four spellings found on disk into one.
//! 2. [`manifest`] and [`format`](mod@format): a trainer writes an adapter as one safetensors
//!    file with a manifest; [`format::read`] takes such a file apart again and trusts nothing in
//!    it ([`header`] is looked at before any parser of tensors is let near). What comes out is an
//!    [`Adapter`] whose [`values`] are a whole row: where the adapter has no value, the base's.
//! 3. [`digest`]: the file's SHA-256 is its [`Generation`], the one identity an adapter has. The
//!    vision part of a row has a digest of its own, because image features depend on it alone.
//! 4. [`store`] and [`registry`]: the file goes to disk under its generation, then a record says
//!    whose it is, and last an alias is moved to it. A stop between any two of these loses the
//!    later ones and nothing else.
//! 5. [`slots`]: a running sequence pins its generation to a slot of the bank; a slot in use is
//!    never given to another.
//!
//! ```
//! use norma_adapters::{Acquire, Generation, SlotTable};
//!
//! let mut slots = SlotTable::new(2);
//! let (ours, theirs) = (Generation::of(b"ours"), Generation::of(b"theirs"));
//! assert_eq!(slots.acquire(&ours), Acquire::Fill(1));
//! assert_eq!(slots.acquire(&theirs), Acquire::Full);
//! slots.release(1);
//! assert_eq!(slots.acquire(&theirs), Acquire::Fill(1));
//! ```

pub mod digest;
pub mod format;
pub mod header;
pub mod manifest;
pub mod names;
pub mod registry;
pub mod site;
pub mod slots;
pub mod store;
pub mod values;

pub use digest::{Digest, DigestSyntax, Generation, Hasher};
pub use format::{Adapter, AdapterError};
pub use header::HeaderError;
pub use manifest::{Calibration, Manifest, ManifestError, SelfTest, Task};
pub use registry::{
    Added, AliasMove, AliasRecord, Expected, Page, Record, Registry, RegistryError, State,
};
pub use site::{Part, Scope, Site, SiteKind, SiteRange, SiteTable, SiteTableError, UnknownScope};
pub use slots::{Acquire, BASE_SLOT, SlotTable};
pub use store::{IncomingFile, StoreError};
pub use values::{AdapterValues, SiteValues, StoredValues, ValuesError};
