//! Adapters: tiny sets of norm values for one frozen base.

pub mod digest;
pub mod format;
pub mod header;
pub mod manifest;
pub mod names;
pub mod site;
pub mod slots;
pub mod values;

pub use digest::{Digest, DigestSyntax, Generation, Hasher};
pub use format::{Adapter, AdapterError};
pub use header::HeaderError;
pub use manifest::{Calibration, Manifest, ManifestError, SelfTest, Task};
pub use site::{Part, Scope, Site, SiteKind, SiteRange, SiteTable, SiteTableError, UnknownScope};
pub use slots::{Acquire, BASE_SLOT, SlotTable};
pub use values::{AdapterValues, SiteValues, StoredValues, ValuesError};
