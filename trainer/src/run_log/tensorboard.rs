//! TensorBoard's event files: records with checksums, a protobuf message in each. In: events. Out: a file
//! that TensorBoard reads while it grows. Only scalars are needed, which are two fields of one message, so
//! the format is written here and no library stands between a full disk and the error.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::now;
use crate::run::Event;

/// An open event file.
pub struct EventFile {
    file: BufWriter<File>,
}

impl EventFile {
    /// A new file in `folder`. Of a run that goes on after step `resumed`, TensorBoard then leaves out
    /// what older files say of later steps.
    pub fn create(folder: &Path, resumed: usize) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let (time, process) = (now(), std::process::id());
        // Two runs of one process may start within a second.
        let mut attempt = 0;
        let file = loop {
            let name = format!(
                "events.out.tfevents.{:010}.norma.{process}.{attempt}",
                time as u64
            );
            match File::create_new(folder.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                made => break made?,
            }
        };
        let mut events = Self {
            file: BufWriter::new(file),
        };
        let mut version = Message::of(time, 0);
        version.bytes(3, b"brain.Event:2");
        events.record(&version.0)?;
        if resumed > 0 {
            let mut session = Message::default();
            session.number(1, START);
            let mut event = Message::of(time, resumed + 1);
            event.bytes(7, &session.0);
            events.record(&event.0)?;
        }
        events.file.flush()?;
        Ok(events)
    }

    /// Adds an event's scalars.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        match *event {
            Event::Step {
                done,
                loss,
                rate,
                norm,
                tokens,
                seconds,
            } => self.scalars(
                done,
                &[
                    ("loss/train", loss),
                    ("rate", rate),
                    ("gradient_norm", norm),
                    ("tokens_per_second", tokens as f64 / seconds.max(1e-9)),
                ],
            ),
            Event::Validated { done, loss, .. } => self.scalars(done, &[("loss/validation", loss)]),
            _ => Ok(()),
        }
    }

    fn scalars(&mut self, step: usize, scalars: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Message::default();
        for (tag, value) in scalars {
            let mut one = Message::default();
            one.bytes(1, tag.as_bytes());
            one.float(2, *value as f32);
            summary.bytes(1, &one.0);
        }
        let mut event = Message::of(now(), step);
        event.bytes(5, &summary.0);
        self.record(&event.0)?;
        self.file.flush()
    }

    /// Length, its checksum, the message, its checksum.
    fn record(&mut self, message: &[u8]) -> io::Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        self.file.write_all(&length)?;
        self.file.write_all(&masked(&length).to_le_bytes())?;
        self.file.write_all(message)?;
        self.file.write_all(&masked(message).to_le_bytes())
    }
}

/// `SessionLog.START`.
const START: u64 = 1;

/// A protobuf message under way.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    /// An event: its time and its step.
    fn of(time: f64, step: usize) -> Self {
        let mut message = Self::default();
        message.0.push(1 << 3 | 1);
        message.0.extend(time.to_le_bytes());
        message.number(2, step as u64);
        message
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u8, value: u64) {
        self.0.push(field << 3);
        self.varint(value);
    }

    fn float(&mut self, field: u8, value: f32) {
        self.0.push(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u8, bytes: &[u8]) {
        self.0.push(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

/// A checksum of data that may hold checksums.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C, and RFC 3720's example of 32 zeros.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// The messages by hand, from the fields' numbers in TensorBoard's `event.proto` and `summary.proto`.
    #[test]
    fn a_file_holds_whole_records_of_scalars() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(folder.path(), 300).unwrap();
        file.write(&Event::Validated {
            done: 301,
            loss: 0.5,
            best: true,
        })
        .unwrap();
        file.write(&Event::Saved { done: 301 }).unwrap();
        let path = fs::read_dir(folder.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let bytes = fs::read(path.path()).unwrap();
        let mut rest: &[u8] = &bytes;
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]).to_le_bytes());
            let message = &rest[12..12 + length];
            assert_eq!(
                rest[12 + length..16 + length],
                masked(message).to_le_bytes()
            );
            messages.push(message[9..].to_vec());
            rest = &rest[16 + length..];
        }
        let step = [0x10, 0xad, 0x02]; // 301
        let mut scalar = vec![0x0a, 15];
        scalar.extend(b"loss/validation");
        scalar.extend([0x15, 0, 0, 0, 0x3f]);
        let mut wanted = step.to_vec();
        wanted.extend([0x2a, 24, 0x0a, 22]);
        wanted.extend(scalar);
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[0], b"\x10\x00\x1a\x0dbrain.Event:2");
        assert_eq!(messages[1], [&step[..], &[0x3a, 2, 8, 1]].concat());
        assert_eq!(messages[2], wanted);
        // Another run of the same second has a file of its own.
        EventFile::create(folder.path(), 0).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
