//! Adapter files on disk: uploads in progress, and finished files under their own digest.
//!
//! In: bytes as they arrive. Out: `blobs/sha256/<2 hex>/<64 hex>.safetensors`, whole or absent
//! whatever moment the machine stops at, and checked whenever it is read. Knows no tenant, no
//! alias and nothing of what a file holds.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use thiserror::Error;

use crate::digest::{Digest, Generation, Hasher};

/// Why the disk did not do its part. No message holds a path, because messages may reach clients;
/// what the operating system said is in the source.
#[derive(Debug, Error)]
pub enum StoreError {
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        source: io::Error,
    },
    #[error("the file is larger than the limit of {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the stored file of {generation} is gone")]
    Gone { generation: Generation },
    #[error("the stored file of {generation} is damaged: its digest is {got}")]
    Damaged { generation: Generation, got: Digest },
    #[error("the data folder is in use by another process")]
    Locked,
}

/// Adds what was being done to an error of the operating system.
pub(crate) fn on(action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { action, source }
}

/// The two folders of files, and the lock that keeps a second process out.
#[derive(Debug)]
pub(crate) struct Store {
    blobs: PathBuf,
    incoming: PathBuf,
    /// Held for as long as the store lives; the system lets go of it when the process ends.
    _lock: File,
}

impl Store {
    /// Opens or makes the folders and removes what interrupted uploads left behind.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let blobs = data_dir.join("blobs").join("sha256");
        let incoming = data_dir.join("incoming");
        fs::create_dir_all(&blobs).map_err(on("make the blob folder"))?;
        fs::create_dir_all(&incoming).map_err(on("make the upload folder"))?;
        let lock = File::create(data_dir.join("lock")).map_err(on("make the lock file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::Locked),
            Err(fs::TryLockError::Error(err)) => return Err(on("lock the data folder")(err)),
        }
        // Only now: before the lock is ours, an upload in that folder may be another's, alive.
        for entry in fs::read_dir(&incoming).map_err(on("list the upload folder"))? {
            let path = entry.map_err(on("list the upload folder"))?.path();
            fs::remove_file(path).map_err(on("remove an interrupted upload"))?;
        }
        sync_dir(data_dir)?;
        sync_dir(&data_dir.join("blobs"))?;
        Ok(Self {
            blobs,
            incoming,
            _lock: lock,
        })
    }

    /// A new, empty upload of at most `limit` bytes.
    pub(crate) fn incoming(&self, limit: u64) -> Result<IncomingFile, StoreError> {
        let file = tempfile::Builder::new()
            .prefix("upload-")
            .tempfile_in(&self.incoming)
            .map_err(on("make an upload file"))?;
        Ok(IncomingFile {
            file,
            hasher: Hasher::new(),
            len: 0,
            limit,
        })
    }

    /// Makes an upload a blob. When this returns, the blob survives a power cut; until it does, a
    /// reader sees the whole file or none. A blob that is there already is replaced by its equal,
    /// which also heals one that the disk has damaged.
    pub(crate) fn commit(&self, incoming: IncomingFile) -> Result<Generation, StoreError> {
        let generation = incoming.generation();
        incoming
            .file
            .as_file()
            .sync_all()
            .map_err(on("write the upload to disk"))?;
        let path = self.path(&generation);
        let dir = self.dir(&generation);
        match fs::create_dir(&dir) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
                return Err(on("make a blob folder")(err));
            }
            // Also where another thread made it just now, and has not written that down yet.
            _ => sync_dir(&self.blobs)?,
        }
        incoming
            .file
            .persist(&path)
            .map_err(|err| on("store the upload")(err.error))?;
        sync_dir(&dir)?;
        Ok(generation)
    }

    /// A blob's bytes, checked against its name.
    pub(crate) fn read(&self, generation: &Generation) -> Result<Vec<u8>, StoreError> {
        let bytes = match fs::read(self.path(generation)) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Gone {
                    generation: *generation,
                });
            }
            Err(err) => return Err(on("read a stored file")(err)),
        };
        let got = Digest::of(&bytes);
        if got != *generation.digest() {
            return Err(StoreError::Damaged {
                generation: *generation,
                got,
            });
        }
        Ok(bytes)
    }

    fn dir(&self, generation: &Generation) -> PathBuf {
        self.blobs.join(&generation.digest().hex()[..2])
    }

    pub(crate) fn path(&self, generation: &Generation) -> PathBuf {
        self.dir(generation)
            .join(format!("{}.safetensors", generation.digest().hex()))
    }
}

/// An upload in progress: a file of its own that grows by appending, removed again unless the
/// registry takes it.
#[derive(Debug)]
pub struct IncomingFile {
    file: NamedTempFile,
    hasher: Hasher,
    len: u64,
    limit: u64,
}

impl IncomingFile {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] before anything is written where the limit would be passed.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let len = self.len + bytes.len() as u64;
        if len > self.limit {
            return Err(StoreError::TooLarge { limit: self.limit });
        }
        self.file.write_all(bytes).map_err(on("write the upload"))?;
        self.hasher.update(bytes);
        self.len = len;
        Ok(())
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The generation that the bytes so far would make.
    pub fn generation(&self) -> Generation {
        Generation(self.hasher.clone().finish())
    }

    /// The bytes so far, read back from the file.
    pub fn read(&mut self) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.len).unwrap_or_default());
        let file = self.file.as_file_mut();
        file.seek(SeekFrom::Start(0))
            .map_err(on("read the upload back"))?;
        file.read_to_end(&mut bytes)
            .map_err(on("read the upload back"))?;
        let got = Digest::of(&bytes);
        let generation = self.generation();
        if got != *generation.digest() {
            return Err(StoreError::Damaged { generation, got });
        }
        Ok(bytes)
    }
}

/// Makes the names in a folder survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(on("write a folder to disk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(store: &Store, bytes: &[u8]) -> IncomingFile {
        let mut incoming = store.incoming(100).unwrap();
        for piece in bytes.chunks(3) {
            incoming.append(piece).unwrap();
        }
        incoming
    }

    fn files_in(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn an_upload_becomes_a_blob_under_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut incoming = upload(&store, b"an adapter");
        assert_eq!(incoming.read().unwrap(), b"an adapter");
        incoming.append(b"!").unwrap();
        assert_eq!((incoming.len(), incoming.is_empty()), (11, false));
        let generation = store.commit(incoming).unwrap();
        assert_eq!(generation, Generation::of(b"an adapter!"));
        assert_eq!(store.read(&generation).unwrap(), b"an adapter!");
        let hex = generation.digest().hex();
        let path = dir
            .path()
            .join(format!("blobs/sha256/{}/{hex}.safetensors", &hex[..2]));
        assert_eq!(fs::read(path).unwrap(), b"an adapter!");
        assert_eq!(files_in(&dir.path().join("incoming")), 0);
    }

    #[test]
    fn the_limit_holds_to_the_byte_and_an_abandoned_upload_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut incoming = store.incoming(4).unwrap();
        incoming.append(b"abcd").unwrap();
        let err = incoming.append(b"e").unwrap_err();
        assert!(matches!(err, StoreError::TooLarge { limit: 4 }), "{err}");
        assert_eq!(incoming.generation(), Generation::of(b"abcd"));
        assert_eq!(files_in(&dir.path().join("incoming")), 1);
        drop(incoming);
        assert_eq!(files_in(&dir.path().join("incoming")), 0);
    }

    #[test]
    fn damage_and_loss_are_told_and_a_new_upload_heals_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let generation = store.commit(upload(&store, b"whole")).unwrap();
        fs::write(store.path(&generation), b"who").unwrap();
        let err = store.read(&generation).unwrap_err();
        assert!(matches!(err, StoreError::Damaged { .. }), "{err}");
        store.commit(upload(&store, b"whole")).unwrap();
        assert_eq!(store.read(&generation).unwrap(), b"whole");
        fs::remove_file(store.path(&generation)).unwrap();
        let err = store.read(&generation).unwrap_err();
        assert!(matches!(err, StoreError::Gone { .. }), "{err}");
        assert!(!err.to_string().contains(dir.path().to_str().unwrap()));
    }

    #[test]
    fn a_second_opener_is_refused_and_disturbs_no_upload() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let incoming = upload(&store, b"in progress");
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked)));
        let generation = store.commit(incoming).unwrap();
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.read(&generation).unwrap(), b"in progress");
    }
}
