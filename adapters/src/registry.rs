//! Who owns which adapters, and which generation each alias names.
//!
//! In: checked adapters, moves of aliases. Out: generations by alias, records, history, file
//! contents. What is true is in SQLite and in the store; a table in memory answers
//! [`Registry::resolve`] without touching either. Every call is for one tenant, and nothing in an
//! answer, an error or a return value depends on another tenant's adapters. Knows no bank, no
//! engine and no HTTP. All methods may be called from any thread.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use dashmap::DashMap;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use thiserror::Error;

use crate::digest::{Digest, Generation};
use crate::format::Adapter;
use crate::store::{IncomingFile, Store, StoreError, sync_dir};

mod tables;

pub use tables::{AliasMove, AliasRecord, Page, Record, State};

const MAX_NAME: usize = 64;
const MAX_PAGE: usize = 1000;

/// Why the registry refused, or failed.
#[derive(Debug, Error)]
pub enum RegistryError {
    #[error(
        "`{field}` must be 1 to {MAX_NAME} characters of A-Z a-z 0-9 `.` `_` `-` and not begin \
         with `.`"
    )]
    Name { field: &'static str },
    #[error("alias `{alias}` is not at the expected generation: it names {}", named(present.as_ref()))]
    AliasConflict {
        alias: String,
        present: Option<Generation>,
    },
    #[error("generation {generation} is unknown")]
    UnknownGeneration { generation: Generation },
    #[error("generation {generation} was tuned on another base")]
    OtherBase { generation: Generation },
    #[error("the upload is {got}, the adapter checked was {want}")]
    NotTheUpload { got: Generation, want: Generation },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the registry's database failed")]
    Database(#[from] rusqlite::Error),
    #[error(
        "the registry's database has version {got}, this program reads {}",
        tables::VERSION
    )]
    Version { got: i64 },
}

fn named(present: Option<&Generation>) -> String {
    present.map_or_else(|| "nothing".to_owned(), ToString::to_string)
}

/// What a caller believes an alias names before it moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it names, or nothing.
    Any,
    /// Nothing: the alias does not exist.
    Absent,
    /// This generation.
    Is(Generation),
}

impl Expected {
    fn allows(self, present: Option<Generation>) -> bool {
        match self {
            Expected::Any => true,
            Expected::Absent => present.is_none(),
            Expected::Is(generation) => present == Some(generation),
        }
    }
}

/// Whether a tenant had the generation before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    New,
    Existing,
}

/// The registry of one data folder, for one base.
#[derive(Debug)]
pub struct Registry {
    store: Store,
    base: Digest,
    max_bytes: u64,
    /// Behind the connection's lock an alias is also put into `aliases`, so that both change in
    /// the same order.
    connection: Mutex<Connection>,
    /// (tenant, alias). Holds the aliases of this base only.
    aliases: DashMap<(String, String), Generation>,
}

impl Registry {
    /// Opens the data folder, or makes it, for the base with this digest. Uploads may have up to
    /// `max_bytes`. Removes interrupted uploads and reads the aliases.
    ///
    /// Adapters of another base stay where they are: they are listed as such, and their aliases
    /// do not resolve.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where another process has the folder open, a database of a later
    /// version, or the disk's and the database's own.
    pub fn open(data_dir: &Path, base: Digest, max_bytes: u64) -> Result<Self, RegistryError> {
        let store = Store::open(data_dir)?;
        let connection = tables::open(&data_dir.join("registry.sqlite"))?;
        sync_dir(data_dir)?;
        let aliases = tables::aliases_of(&connection, &base)?
            .into_iter()
            .map(|(tenant, alias, generation)| ((tenant, alias), generation))
            .collect();
        Ok(Self {
            store,
            base,
            max_bytes,
            connection: Mutex::new(connection),
            aliases,
        })
    }

    /// The generation that a tenant's alias names. Touches memory only.
    pub fn resolve(&self, tenant: &str, alias: &str) -> Option<Generation> {
        self.aliases
            .get(&(tenant.to_owned(), alias.to_owned()))
            .map(|target| *target)
    }

    /// A new upload.
    pub fn incoming(&self) -> Result<IncomingFile, RegistryError> {
        Ok(self.store.incoming(self.max_bytes)?)
    }

    /// Takes an upload whose bytes have been read as `adapter` into the store and records it for
    /// the tenant. On return both survive a power cut.
    ///
    /// # Errors
    /// [`RegistryError::NotTheUpload`] where the upload holds other bytes than the adapter's,
    /// [`RegistryError::OtherBase`] where it is not of the base that the registry was opened for.
    pub fn add(
        &self,
        tenant: &str,
        incoming: IncomingFile,
        adapter: &Adapter,
    ) -> Result<Added, RegistryError> {
        check_name("tenant", tenant)?;
        let (got, want) = (incoming.generation(), adapter.generation);
        if got != want {
            return Err(RegistryError::NotTheUpload { got, want });
        }
        if adapter.manifest.base_digest != self.base {
            return Err(RegistryError::OtherBase { generation: want });
        }
        let bytes = incoming.len();
        // The blob first: a record whose file is missing would be a promise broken, a file
        // without a record is only space.
        self.store.commit(incoming)?;
        let record = Record {
            generation: want,
            base_digest: self.base,
            created: now(),
            bytes,
            task: adapter.manifest.task.clone(),
            scope: adapter.manifest.scope,
            n_sites: adapter.n_sites,
            n_values: adapter.n_values,
            state: State::Ready,
        };
        let is_new = tables::insert_record(&self.connection(), tenant, &record)?;
        Ok(if is_new { Added::New } else { Added::Existing })
    }

    /// The record of a tenant's generation.
    pub fn record(
        &self,
        tenant: &str,
        generation: &Generation,
    ) -> Result<Option<Record>, RegistryError> {
        Ok(tables::record(
            &self.connection(),
            tenant,
            generation,
            &self.base,
        )?)
    }

    /// Every generation of a tenant, named by an alias or not, in the order of their digests;
    /// `after` is the last one of the page before.
    pub fn records(
        &self,
        tenant: &str,
        limit: usize,
        after: Option<&Generation>,
    ) -> Result<Page<Record>, RegistryError> {
        let connection = self.connection();
        Ok(tables::records(
            &connection,
            tenant,
            limit.min(MAX_PAGE),
            after,
            &self.base,
        )?)
    }

    /// The file of a tenant's generation, checked against its digest.
    ///
    /// # Errors
    /// [`RegistryError::UnknownGeneration`] where this tenant has no such generation, whoever else
    /// may have; [`StoreError::Damaged`] or [`StoreError::Gone`] where the disk has lost it.
    pub fn open_blob(
        &self,
        tenant: &str,
        generation: &Generation,
    ) -> Result<Vec<u8>, RegistryError> {
        if self.record(tenant, generation)?.is_none() {
            return Err(RegistryError::UnknownGeneration {
                generation: *generation,
            });
        }
        Ok(self.store.read(generation)?)
    }

    /// Points an alias at a generation of the same tenant, if it names what is expected. Gives
    /// what it named before. An alias that is there already is left as it is, without a new entry
    /// in its history.
    ///
    /// # Errors
    /// [`RegistryError::AliasConflict`] with what the alias names at present, an unusable name, or
    /// a generation that the tenant has not or that is of another base.
    pub fn put_alias(
        &self,
        tenant: &str,
        alias: &str,
        generation: &Generation,
        expected: Expected,
    ) -> Result<Option<Generation>, RegistryError> {
        check_name("tenant", tenant)?;
        check_name("alias", alias)?;
        let mut connection = self.connection();
        let change = begin(&mut connection)?;
        let generation = *generation;
        let record = tables::record(&change, tenant, &generation, &self.base)?
            .ok_or(RegistryError::UnknownGeneration { generation })?;
        match record.state {
            State::Ready => {}
            State::OtherBase => return Err(RegistryError::OtherBase { generation }),
        }
        let present = tables::alias_target(&change, tenant, alias)?;
        if !expected.allows(present) {
            return Err(RegistryError::AliasConflict {
                alias: alias.to_owned(),
                present,
            });
        }
        if present != Some(generation) {
            tables::move_alias(&change, (tenant, alias), Some(&generation), now())?;
            change.commit()?;
        }
        self.aliases
            .insert((tenant.to_owned(), alias.to_owned()), generation);
        Ok(present)
    }

    /// Removes an alias, and gives what it named; nothing where there is none. Its history and
    /// the generations stay.
    pub fn delete_alias(
        &self,
        tenant: &str,
        alias: &str,
    ) -> Result<Option<Generation>, RegistryError> {
        let mut connection = self.connection();
        let change = begin(&mut connection)?;
        let present = tables::alias_target(&change, tenant, alias)?;
        if present.is_some() {
            tables::move_alias(&change, (tenant, alias), None, now())?;
            change.commit()?;
        }
        self.aliases.remove(&(tenant.to_owned(), alias.to_owned()));
        Ok(present)
    }

    /// One alias of a tenant with the record of its generation.
    pub fn alias(&self, tenant: &str, alias: &str) -> Result<Option<AliasRecord>, RegistryError> {
        Ok(tables::alias(
            &self.connection(),
            (tenant, alias),
            &self.base,
        )?)
    }

    /// A tenant's aliases in the order of their bytes; `after` is the last one of the page before.
    /// At most 1,000 a page.
    pub fn list(
        &self,
        tenant: &str,
        limit: usize,
        after: Option<&str>,
    ) -> Result<Page<AliasRecord>, RegistryError> {
        let connection = self.connection();
        Ok(tables::aliases(
            &connection,
            tenant,
            limit.min(MAX_PAGE),
            after,
            &self.base,
        )?)
    }

    /// What an alias has named, the latest move first; `after` is the id of the last move of the
    /// page before. At most 1,000 a page. Outlives the alias.
    pub fn generations(
        &self,
        tenant: &str,
        alias: &str,
        limit: usize,
        after: Option<u64>,
    ) -> Result<Page<AliasMove>, RegistryError> {
        let connection = self.connection();
        Ok(tables::moves(
            &connection,
            (tenant, alias),
            limit.min(MAX_PAGE),
            after,
        )?)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in another thread has rolled its transaction back; the connection is sound.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts a change. Unless it is committed it is undone when it goes out of scope.
fn begin(connection: &mut Connection) -> Result<Transaction<'_>, RegistryError> {
    Ok(connection.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

fn check_name(field: &'static str, name: &str) -> Result<(), RegistryError> {
    let fits = (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits {
        Ok(())
    } else {
        Err(RegistryError::Name { field })
    }
}

/// Unix time in seconds.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
