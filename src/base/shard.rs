//! One safetensors file: its tensors' places from the header, and their bytes when asked for.
//!
//! Files are read, not mapped: what is read lands where it is used, the file's pages stay the system's, and
//! a file that shrinks meanwhile is an error instead of a signal. It knows nothing of what tensors mean.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::error::BaseError;

/// The longest header that is read, as the format's own library has it.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of one read: small enough to be widened while in cache.
const CHUNK: usize = 1 << 15;

/// An opened file.
pub struct Shard {
    /// Its name within the folder.
    pub file: String,
    path: PathBuf,
    handle: File,
}

/// Where a tensor lies in its file.
#[derive(Clone, Debug)]
pub struct Place {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The first byte, counted from the file's beginning.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Shard {
    /// Opens a file and reads its header; tensors are listed by the names that are stored.
    pub fn open(folder: &Path, file: &str) -> Result<(Self, Vec<(String, Place)>), BaseError> {
        let path = folder.join(file);
        let mut handle = File::open(&path).map_err(|source| BaseError::Read {
            file: file.into(),
            source,
        })?;
        let broken = |problem: String| BaseError::Weights {
            file: file.into(),
            problem,
        };
        let length = handle
            .metadata()
            .map_err(|error| broken(error.to_string()))?
            .len();
        let mut size = [0u8; 8];
        handle
            .read_exact(&mut size)
            .map_err(|_| broken("it has no header".into()))?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER || size + 8 > length {
            return Err(broken(format!(
                "its header of {size} bytes is not in the file"
            )));
        }
        let mut header = vec![0u8; size as usize];
        handle
            .read_exact(&mut header)
            .map_err(|error| broken(error.to_string()))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| broken(error.to_string()))?;
        let (want, first) = (metadata.data_len() as u64, size + 8);
        if first + want != length {
            let have = length - first;
            return Err(broken(format!(
                "its header tells of {want} bytes of tensors, the file has {have}"
            )));
        }
        let places = metadata.tensors().into_iter().map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let place = Place {
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: first + start as u64,
                len: (end - start) as u64,
            };
            (name, place)
        });
        let places = places.collect();
        let file = file.into();
        Ok((Self { file, path, handle }, places))
    }

    /// Reads some bytes, from `start` of the file on.
    #[cfg(unix)]
    pub fn read(&self, start: u64, to: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.handle, to, start)
            .map_err(|error| self.named(&error))
    }

    /// Reads some bytes, from `start` of the file on.
    #[cfg(not(unix))]
    pub fn read(&self, start: u64, to: &mut [u8]) -> io::Result<()> {
        // A handle has one position, and threads share the shard's.
        let read = || {
            let mut own = File::open(&self.path)?;
            io::Seek::seek(&mut own, io::SeekFrom::Start(start))?;
            own.read_exact(to)
        };
        read().map_err(|error| self.named(&error))
    }

    fn named(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }

    /// Calls `each` with a tensor's bytes, piece by piece and in order. Pieces hold whole elements.
    pub fn pieces(&self, place: &Place, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = [0u8; CHUNK];
        let mut done = 0;
        while done < place.len {
            let n = (place.len - done).min(CHUNK as u64) as usize;
            self.read(place.start + done, &mut buffer[..n])?;
            each(&buffer[..n]);
            done += n as u64;
        }
        Ok(())
    }

    /// Reads elements `first..first + to.len()` of a tensor of floats as f32.
    pub fn floats(&self, place: &Place, first: usize, to: &mut [f32]) -> io::Result<()> {
        let size = place.dtype.bitsize() / 8;
        let part = Place {
            start: place.start + (first * size) as u64,
            len: (to.len() * size) as u64,
            ..place.clone()
        };
        let mut rest = to;
        self.pieces(&part, |bytes| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(bytes.len() / size);
            widen(place.dtype, bytes, now);
            rest = later;
        })
    }
}

/// The values of little-endian floats; zeros for other types, which nobody asks for.
fn widen(dtype: Dtype, bytes: &[u8], to: &mut [f32]) {
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        Dtype::F32 => {
            for (value, bytes) in to.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Dtype::BF16 => {
            for (value, pair) in to.iter_mut().zip(pairs()) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes(pair)) << 16);
            }
        }
        Dtype::F16 => {
            for (value, pair) in to.iter_mut().zip(pairs()) {
                *value = f16::from_le_bytes(pair).to_f32();
            }
        }
        _ => to.fill(0.0),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use half::bf16;
    use safetensors::tensor::TensorView;

    use super::*;

    fn folder(bytes: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), bytes).unwrap();
        folder
    }

    #[test]
    fn floats_of_every_type_and_place_are_read() {
        let values: Vec<f32> = (0..40_000).map(|i| i as f32 * 0.25 - 100.0).collect();
        let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let narrow = |value: &f32| bf16::from_f32(*value);
        let bf16s: Vec<u8> = values
            .iter()
            .flat_map(|v| narrow(v).to_le_bytes())
            .collect();
        let half = |value: &f32| f16::from_f32(*value);
        let f16s: Vec<u8> = values.iter().flat_map(|v| half(v).to_le_bytes()).collect();
        let shape = vec![40, 1000];
        let view = |dtype, bytes| TensorView::new(dtype, shape.clone(), bytes).unwrap();
        let file = safetensors::serialize(
            [
                ("x", view(Dtype::F32, &f32s)),
                ("y", view(Dtype::BF16, &bf16s)),
                ("z", view(Dtype::F16, &f16s)),
            ],
            None,
        );
        let folder = folder(&file.unwrap());
        let (shard, places) = Shard::open(folder.path(), "a").unwrap();
        assert_eq!(places.len(), 3);
        for (name, place) in places {
            assert_eq!(place.shape, shape);
            let want: Vec<f32> = match name.as_str() {
                "x" => values.clone(),
                "y" => values.iter().map(|v| narrow(v).to_f32()).collect(),
                _ => values.iter().map(|v| half(v).to_f32()).collect(),
            };
            for (first, n) in [(0, 40_000), (3000, 17_001), (39_999, 1)] {
                let mut got = vec![0f32; n];
                shard.floats(&place, first, &mut got).unwrap();
                assert_eq!(got, want[first..first + n]);
            }
            let mut all = Vec::new();
            shard
                .pieces(&place, |bytes| all.extend_from_slice(bytes))
                .unwrap();
            let bytes = [("x", &f32s), ("y", &bf16s), ("z", &f16s)];
            assert!(bytes.contains(&(name.as_str(), &all)));
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        let whole = b"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
        let file = |size: u64, header: &[u8], data: usize| {
            [&size.to_le_bytes()[..], header, &vec![0; data]].concat()
        };
        let length = whole.len() as u64;
        let cases = [
            Vec::new(),
            vec![1, 0, 0],
            file(u64::MAX, whole, 8),
            file(length + 100, whole, 8),
            file(length, whole, 7),
            file(length, whole, 9),
            file(length - 1, whole, 9),
            file(2, b"[]", 0),
        ];
        for bytes in cases {
            let folder = folder(&bytes);
            assert!(matches!(
                Shard::open(folder.path(), "a"),
                Err(BaseError::Weights { .. })
            ));
        }
        let sound = folder(&file(length, whole, 8));
        assert!(Shard::open(sound.path(), "a").is_ok());
        assert!(matches!(
            Shard::open(sound.path(), "b"),
            Err(BaseError::Read { .. })
        ));
    }
}
