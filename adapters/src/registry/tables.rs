//! The registry's SQLite tables: their layout, and every statement that is run on them.
//!
//! In: a connection and values. Out: records. Every statement names its tenant. Knows no files
//! and takes no decision.

use std::path::Path;
use std::str::FromStr;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;

use super::RegistryError;
use crate::digest::{Digest, Generation};
use crate::manifest::Task;
use crate::site::Scope;

/// The layout's version, kept in the database's `user_version`.
pub(super) const VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE generations (
    tenant     TEXT NOT NULL,
    generation TEXT NOT NULL,
    base       TEXT NOT NULL,
    created    INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    task       TEXT NOT NULL,
    scope      TEXT NOT NULL,
    n_sites    INTEGER NOT NULL,
    n_values   INTEGER NOT NULL,
    PRIMARY KEY (tenant, generation)
) STRICT, WITHOUT ROWID;
CREATE TABLE aliases (
    tenant     TEXT NOT NULL,
    alias      TEXT NOT NULL,
    generation TEXT NOT NULL,
    moved      INTEGER NOT NULL,
    PRIMARY KEY (tenant, alias),
    FOREIGN KEY (tenant, generation) REFERENCES generations (tenant, generation)
) STRICT, WITHOUT ROWID;
CREATE TABLE moves (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant     TEXT NOT NULL,
    alias      TEXT NOT NULL,
    generation TEXT,
    moved      INTEGER NOT NULL
) STRICT;
CREATE INDEX moves_of_alias ON moves (tenant, alias, id);
";

/// Whether a recorded adapter can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It passed every check when it was added.
    Ready,
    /// It was tuned on another base than the one now loaded.
    OtherBase,
}

/// One adapter of one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    pub generation: Generation,
    pub base_digest: Digest,
    /// When the tenant first added it, Unix seconds.
    pub created: u64,
    /// Length of the file.
    pub bytes: u64,
    pub task: Task,
    pub scope: Scope,
    /// Sites that the adapter itself holds.
    pub n_sites: usize,
    /// Values that the adapter itself holds.
    pub n_values: usize,
    pub state: State,
}

/// One alias, and what it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AliasRecord {
    pub alias: String,
    /// When it came to name it, Unix seconds.
    pub moved: u64,
    pub record: Record,
}

/// One step in an alias's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AliasMove {
    /// Grows from move to move.
    pub id: u64,
    /// What the alias named from then on; nothing where it was deleted.
    pub generation: Option<Generation>,
    /// When, Unix seconds.
    pub moved: u64,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Page<T> {
    pub data: Vec<T>,
    /// Whether another page follows.
    pub has_more: bool,
}

/// Opens the database, or makes it. Each commit waits for the disk.
pub(super) fn open(path: &Path) -> Result<Connection, RegistryError> {
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match version {
        VERSION => {}
        0 => {
            let change = connection.transaction()?;
            change.execute_batch(SCHEMA)?;
            change.pragma_update(None, "user_version", VERSION)?;
            change.commit()?;
        }
        got => return Err(RegistryError::Version { got }),
    }
    Ok(connection)
}

/// Every (tenant, alias, generation) whose generation is of this base.
pub(super) fn aliases_of(
    connection: &Connection,
    base: &Digest,
) -> rusqlite::Result<Vec<(String, String, Generation)>> {
    connection
        .prepare(
            // `CROSS` keeps SQLite from going through all aliases for every generation.
            "SELECT tenant, alias, generation FROM aliases CROSS JOIN generations
             USING (tenant, generation) WHERE base = ?1",
        )?
        .query_map([base.to_string()], |row| {
            Ok((row.get(0)?, row.get(1)?, parsed(row, 2)?))
        })?
        .collect()
}

/// Records a generation unless the tenant has it; says whether it is new.
pub(super) fn insert_record(
    connection: &Connection,
    tenant: &str,
    record: &Record,
) -> rusqlite::Result<bool> {
    let changed = connection.execute(
        "INSERT INTO generations
         (tenant, generation, base, created, bytes, task, scope, n_sites, n_values)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING",
        params![
            tenant,
            record.generation.to_string(),
            record.base_digest.to_string(),
            record.created,
            record.bytes,
            record.task.as_str(),
            record.scope.as_str(),
            record.n_sites,
            record.n_values,
        ],
    )?;
    Ok(changed == 1)
}

/// The columns that [`to_record`] reads, in its order.
const RECORD: &str = "generation, base, created, bytes, task, scope, n_sites, n_values";

pub(super) fn record(
    connection: &Connection,
    tenant: &str,
    generation: &Generation,
    base: &Digest,
) -> rusqlite::Result<Option<Record>> {
    let sql = format!("SELECT {RECORD} FROM generations WHERE tenant = ?1 AND generation = ?2");
    connection
        .prepare_cached(&sql)?
        .query_row(params![tenant, generation.to_string()], |row| {
            to_record(row, base)
        })
        .optional()
}

pub(super) fn records(
    connection: &Connection,
    tenant: &str,
    limit: usize,
    after: Option<&Generation>,
    base: &Digest,
) -> rusqlite::Result<Page<Record>> {
    let sql = format!(
        "SELECT {RECORD} FROM generations WHERE tenant = ?1 AND generation > ?2
         ORDER BY generation LIMIT ?3"
    );
    let after = after.map(ToString::to_string).unwrap_or_default();
    let rows = connection
        .prepare_cached(&sql)?
        .query_map(params![tenant, after, limit + 1], |row| {
            to_record(row, base)
        })?
        .collect::<Result<_, _>>()?;
    Ok(page(rows, limit))
}

pub(super) fn alias(
    connection: &Connection,
    (tenant, alias): (&str, &str),
    base: &Digest,
) -> rusqlite::Result<Option<AliasRecord>> {
    let sql = format!(
        "SELECT {RECORD}, alias, moved FROM aliases CROSS JOIN generations USING (tenant, generation)
         WHERE tenant = ?1 AND alias = ?2"
    );
    connection
        .prepare_cached(&sql)?
        .query_row(params![tenant, alias], |row| to_alias(row, base))
        .optional()
}

pub(super) fn aliases(
    connection: &Connection,
    tenant: &str,
    limit: usize,
    after: Option<&str>,
    base: &Digest,
) -> rusqlite::Result<Page<AliasRecord>> {
    let sql = format!(
        "SELECT {RECORD}, alias, moved FROM aliases CROSS JOIN generations USING (tenant, generation)
         WHERE tenant = ?1 AND alias > ?2 ORDER BY alias LIMIT ?3"
    );
    let rows = connection
        .prepare_cached(&sql)?
        .query_map(params![tenant, after.unwrap_or(""), limit + 1], |row| {
            to_alias(row, base)
        })?
        .collect::<Result<_, _>>()?;
    Ok(page(rows, limit))
}

pub(super) fn alias_target(
    connection: &Connection,
    tenant: &str,
    alias: &str,
) -> rusqlite::Result<Option<Generation>> {
    connection
        .prepare_cached("SELECT generation FROM aliases WHERE tenant = ?1 AND alias = ?2")?
        .query_row([tenant, alias], |row| parsed(row, 0))
        .optional()
}

/// Points an alias at a generation, or removes it, and writes its history. To be called inside a
/// transaction.
pub(super) fn move_alias(
    connection: &Connection,
    (tenant, alias): (&str, &str),
    generation: Option<&Generation>,
    moved: u64,
) -> rusqlite::Result<()> {
    let generation = generation.map(ToString::to_string);
    match &generation {
        Some(generation) => connection.execute(
            "INSERT INTO aliases (tenant, alias, generation, moved) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (tenant, alias)
             DO UPDATE SET generation = excluded.generation, moved = excluded.moved",
            params![tenant, alias, generation, moved],
        )?,
        None => connection.execute(
            "DELETE FROM aliases WHERE tenant = ?1 AND alias = ?2",
            [tenant, alias],
        )?,
    };
    connection.execute(
        "INSERT INTO moves (tenant, alias, generation, moved) VALUES (?1, ?2, ?3, ?4)",
        params![tenant, alias, generation, moved],
    )?;
    Ok(())
}

pub(super) fn moves(
    connection: &Connection,
    (tenant, alias): (&str, &str),
    limit: usize,
    after: Option<u64>,
) -> rusqlite::Result<Page<AliasMove>> {
    let rows = connection
        .prepare_cached(
            "SELECT id, generation, moved FROM moves
             WHERE tenant = ?1 AND alias = ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4",
        )?
        .query_map(params![tenant, alias, before(after), limit + 1], |row| {
            let deleted = row.get_ref(1)?.data_type() == Type::Null;
            let generation = if deleted { None } else { Some(parsed(row, 1)?) };
            Ok(AliasMove {
                id: row.get(0)?,
                generation,
                moved: row.get(2)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(page(rows, limit))
}

/// SQLite's whole numbers have a sign; an id above the largest is after everything.
fn before(after: Option<u64>) -> i64 {
    after
        .and_then(|id| i64::try_from(id).ok())
        .unwrap_or(i64::MAX)
}

/// Cuts off the one row that was asked for in excess.
fn page<T>(mut data: Vec<T>, limit: usize) -> Page<T> {
    let has_more = data.len() > limit;
    data.truncate(limit);
    Page { data, has_more }
}

fn to_record(row: &Row<'_>, base: &Digest) -> rusqlite::Result<Record> {
    let base_digest: Digest = parsed(row, 1)?;
    Ok(Record {
        generation: parsed(row, 0)?,
        base_digest,
        created: row.get(2)?,
        bytes: row.get(3)?,
        task: Task::from(row.get::<_, String>(4)?),
        scope: parsed(row, 5)?,
        n_sites: row.get(6)?,
        n_values: row.get(7)?,
        state: if base_digest == *base {
            State::Ready
        } else {
            State::OtherBase
        },
    })
}

fn to_alias(row: &Row<'_>, base: &Digest) -> rusqlite::Result<AliasRecord> {
    Ok(AliasRecord {
        record: to_record(row, base)?,
        alias: row.get(8)?,
        moved: row.get(9)?,
    })
}

/// A text column read as what it spells.
fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|err| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(err)))
}
