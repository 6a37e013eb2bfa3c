//! Append-only log of the broker's state: frames with checksums, batches that are whole or absent, compaction.
//!
//! The file begins with [`HEADER`]. Frames follow: [`MAGIC`], the length of the payload with [`LAST`] set in the last
//! frame of a batch, its CRC-32, the payload. What follows the last whole batch is the torn end of a write that a crash
//! interrupted; it is cut off. A damaged frame with a whole one somewhere behind it is no torn end: the file is then kept
//! under another name, and the state before the damage is used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::record::{Clock, Image, Record};

const HEADER: &[u8; 8] = b"PGBROKR1";
const MAGIC: [u8; 4] = *b"PGJF";
const LAST: u32 = 1 << 31;
const FRAME_HEADER_BYTES: usize = 12;

/// From this size on a frame is written before the next record.
const FRAME_BYTES: usize = 256 << 10;

/// The largest frame that is read: a message may have 255 MiB.
const FRAME_BYTES_MAX: u32 = 512 << 20;

/// Where the log is written to. A file; tests have another one.
pub(super) trait Storage: Send {
    /// Appends to the log, or to the new one after [`Storage::begin`].
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Returns when all that was appended is on the disk.
    fn sync(&mut self) -> io::Result<()>;
    /// Begins a new log beside the present one.
    fn begin(&mut self) -> io::Result<()>;
    /// Puts the new log in the place of the present one.
    fn replace(&mut self) -> io::Result<()>;
    /// Forgets what was appended behind this length, and a new log.
    fn rollback(&mut self, len: u64);
}

/// The writing end.
pub(super) struct Log<S> {
    storage: S,
    /// Of the last whole batch.
    len: u64,
    frame: Vec<u8>,
}

/// A batch that is being written.
pub(super) struct Batch<'a, S> {
    log: &'a mut Log<S>,
    len: u64,
}

impl<S: Storage> Log<S> {
    pub(super) fn new(storage: S, len: u64) -> Self {
        Self { storage, len, frame: Vec::new() }
    }

    /// Bytes of the log.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends a batch. When this returns without an error, it is on the disk.
    ///
    /// # Errors
    ///
    /// Those of the disk; the log is then as it was.
    pub(super) fn append(&mut self, write: impl FnOnce(&mut Batch<'_, S>) -> io::Result<()>) -> io::Result<()> {
        let before = self.len;
        let written = self.write_batch(before, write);
        if written.is_err() {
            self.storage.rollback(before);
        }
        self.len = written?;
        Ok(())
    }

    /// Replaces the log by one with a single batch.
    ///
    /// # Errors
    ///
    /// Those of the disk; the log is then as it was.
    pub(super) fn replace(&mut self, write: impl FnOnce(&mut Batch<'_, S>) -> io::Result<()>) -> io::Result<()> {
        let before = self.len;
        let written = self.storage.begin().and_then(|()| {
            self.storage.append(HEADER)?;
            let len = self.write_batch(HEADER.len() as u64, write)?;
            self.storage.replace()?;
            Ok(len)
        });
        if written.is_err() {
            self.storage.rollback(before);
        }
        self.len = written?;
        Ok(())
    }

    fn write_batch(&mut self, len: u64, write: impl FnOnce(&mut Batch<'_, S>) -> io::Result<()>) -> io::Result<u64> {
        self.frame.clear();
        let mut batch = Batch { log: self, len };
        write(&mut batch)?;
        batch.flush(LAST)?;
        let len = batch.len;
        self.frame = Vec::new();
        self.storage.sync()?;
        Ok(len)
    }
}

impl<S: Storage> Batch<'_, S> {
    /// Writes a record.
    pub(super) fn record(&mut self, record: &Record<'_>) -> io::Result<()> {
        let frame = &mut self.log.frame;
        if frame.is_empty() {
            frame.resize(FRAME_HEADER_BYTES, 0);
        }
        let taken = std::mem::take(frame);
        *frame = postcard::to_extend(record, taken).map_err(io::Error::other)?;
        if frame.len() >= FRAME_BYTES { self.flush(0) } else { Ok(()) }
    }

    fn flush(&mut self, flag: u32) -> io::Result<()> {
        let frame = &mut self.log.frame;
        if frame.is_empty() {
            frame.resize(FRAME_HEADER_BYTES, 0);
        }
        let (header, payload) = frame.split_at_mut(FRAME_HEADER_BYTES);
        let len = u32::try_from(payload.len()).ok().filter(|len| *len <= FRAME_BYTES_MAX);
        let len = len.ok_or_else(|| io::Error::other("a record is larger than 512 MiB"))?;
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&(len | flag).to_le_bytes());
        header[8..].copy_from_slice(&checksum(len | flag, payload).to_le_bytes());
        self.log.storage.append(frame)?;
        self.len += frame.len() as u64;
        frame.clear();
        Ok(())
    }
}

/// Over the length too, so that a file of zeros has no valid frame.
fn checksum(len: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// A state that was read.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) image: Image,
    /// Bytes up to the end of the last whole batch.
    pub(super) len: u64,
    /// What followed it.
    pub(super) rest: Rest,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rest {
    #[default]
    Nothing,
    /// A write that was interrupted.
    Torn { bytes: u64 },
    /// A damaged frame, with whole ones behind it, or records that do not fit.
    Damaged,
}

/// Reads a log: twice, since the records of a batch count only when its end is there.
///
/// # Errors
///
/// Those of reading.
pub(super) fn recover(mut file: impl Read + Seek, clock: Clock) -> io::Result<Recovered> {
    let file_len = file.seek(SeekFrom::End(0))?;
    let mut reader = frames(&mut file)?;
    let Some(reader_ref) = reader.as_mut() else {
        let rest = if file_len < HEADER.len() as u64 { Rest::Torn { bytes: file_len } } else { Rest::Damaged };
        return Ok(Recovered { rest: if file_len == 0 { Rest::Nothing } else { rest }, ..Recovered::default() });
    };
    let mut whole = HEADER.len() as u64;
    let mut position = whole;
    while let Some((is_last, payload)) = next_frame(reader_ref)? {
        position += (FRAME_HEADER_BYTES + payload.len()) as u64;
        if is_last {
            whole = position;
        }
    }
    drop(reader);
    let mut recovered = Recovered { len: whole, ..Recovered::default() };
    let mut position = HEADER.len() as u64;
    if let Some(mut reader) = frames(&mut file)? {
        while position < whole
            && let Some((_, payload)) = next_frame(&mut reader)?
        {
            if recovered.image.apply_all(&payload, clock).is_err() {
                recovered.rest = Rest::Damaged;
                return Ok(recovered);
            }
            position += (FRAME_HEADER_BYTES + payload.len()) as u64;
        }
    }
    if whole < file_len {
        recovered.rest =
            if has_frame_behind(&mut file, whole)? { Rest::Damaged } else { Rest::Torn { bytes: file_len - whole } };
    }
    Ok(recovered)
}

/// The frames from the beginning; `None` when the file has no header.
fn frames<R: Read + Seek>(file: &mut R) -> io::Result<Option<BufReader<&mut R>>> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; HEADER.len()];
    let is_log = match reader.read_exact(&mut header) {
        Ok(()) => header == *HEADER,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(error),
    };
    Ok(is_log.then_some(reader))
}

/// The next frame, and whether it is the last of its batch; `None` at what is none.
fn next_frame(reader: &mut impl Read) -> io::Result<Option<(bool, Vec<u8>)>> {
    let mut header = [0; FRAME_HEADER_BYTES];
    if read_up_to(reader, &mut header)? < FRAME_HEADER_BYTES || header[..4] != MAGIC {
        return Ok(None);
    }
    let [_, _, _, _, a, b, c, d, e, f, g, h] = header;
    let flagged = u32::from_le_bytes([a, b, c, d]);
    let len = flagged & !LAST;
    if len > FRAME_BYTES_MAX {
        return Ok(None);
    }
    let mut payload = Vec::new();
    reader.take(len.into()).read_to_end(&mut payload)?;
    let is_whole = payload.len() == len as usize && checksum(flagged, &payload) == u32::from_le_bytes([e, f, g, h]);
    Ok(is_whole.then_some((flagged & LAST != 0, payload)))
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match reader.read(&mut buffer[read..])? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

/// Whether a whole batch ends behind the first frame that does not belong to one: then no crash has cut the file there.
fn has_frame_behind(file: &mut (impl Read + Seek), from: u64) -> io::Result<bool> {
    file.seek(SeekFrom::Start(from))?;
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    // The frames of the batch that a crash has cut are whole up to the cut.
    let mut at = 0;
    while let Some((_, payload)) = next_frame(&mut &rest[at..])? {
        at += FRAME_HEADER_BYTES + payload.len();
    }
    for start in at + 1..rest.len().saturating_sub(FRAME_HEADER_BYTES - 1) {
        if rest[start..].starts_with(&MAGIC) && next_frame(&mut &rest[start..])?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The log as a file of a directory.
pub(super) struct Directory {
    dir: PathBuf,
    /// Keeps a second process out.
    lock: Option<File>,
    current: Option<File>,
    new: Option<File>,
}

/// The log's file.
const LOG: &str = "state.log";
/// A log that is being written to replace it.
const NEW: &str = "state.new";
const LOCK: &str = "lock";

impl Directory {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), lock: None, current: None, new: None }
    }

    /// Makes the directory and takes its lock.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when another process has it; those of the disk.
    fn prepare(&mut self) -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

        if self.lock.is_some() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.dir.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, "another process uses the directory")
            }
            fs::TryLockError::Error(error) => error,
        })?;
        self.lock = Some(lock);
        Ok(())
    }

    /// Reads the log and opens it for appending.
    ///
    /// # Errors
    ///
    /// Those of the disk. Damage is none: the file is renamed then, see [`Directory::quarantined`].
    pub(super) fn open(&mut self, clock: Clock) -> io::Result<Recovered> {
        self.prepare()?;
        let file = match OpenOptions::new().read(true).write(true).open(self.dir.join(LOG)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Recovered::default()),
            Err(error) => return Err(error),
        };
        let recovered = recover(&file, clock)?;
        match recovered.rest {
            Rest::Damaged => fs::rename(self.dir.join(LOG), self.quarantined(clock))?,
            Rest::Nothing | Rest::Torn { .. } if recovered.len == 0 => {}
            Rest::Nothing => self.current = Some(file),
            Rest::Torn { .. } => {
                file.set_len(recovered.len)?;
                self.current = Some(file);
            }
        }
        if let Some(mut file) = self.current.as_ref() {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(recovered)
    }

    /// The name that a damaged log gets.
    pub(super) fn quarantined(&self, clock: Clock) -> PathBuf {
        self.dir.join(format!("state.damaged-{}", clock.now_ms))
    }
}

impl Storage for Directory {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.new.as_mut().or(self.current.as_mut()) {
            Some(file) => file.write_all(bytes),
            None => Err(io::Error::other("there is no log yet")),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.new.as_ref().or(self.current.as_ref()).map_or(Ok(()), File::sync_data)
    }

    fn begin(&mut self) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;

        self.prepare()?;
        let path = self.dir.join(NEW);
        self.new = Some(OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?);
        Ok(())
    }

    fn replace(&mut self) -> io::Result<()> {
        // Whatever fails here, nothing is appended any more to a log whose name may be gone.
        self.current = None;
        fs::rename(self.dir.join(NEW), self.dir.join(LOG))?;
        let new = self.new.take();
        File::open(&self.dir)?.sync_all()?;
        self.current = new;
        Ok(())
    }

    fn rollback(&mut self, len: u64) {
        if self.new.take().is_some() {
            // What is left of it is overwritten by the next one.
            drop(fs::remove_file(self.dir.join(NEW)));
        } else if let Some(mut file) = self.current.as_ref() {
            let cut = file.set_len(len).and_then(|()| file.seek(SeekFrom::Start(len)));
            if cut.is_err() {
                // A torn end is cut off at the next start; nothing may be appended behind it.
                self.current = None;
            }
        }
    }
}
