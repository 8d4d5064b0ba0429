//! Adapters: tiny sets of norm values for one frozen base.

pub mod digest;
pub mod names;
pub mod site;
pub mod values;

pub use digest::{Digest, DigestSyntax, Generation, Hasher};
pub use site::{Part, Scope, Site, SiteKind, SiteRange, SiteTable, SiteTableError, UnknownScope};
pub use values::{AdapterValues, SiteValues, StoredValues, ValuesError};
