//! The file of packed weights.
//!
//! ```text
//! 0         magic "tallowPW", version of this format (u32), zeros (u32)
//! 16        length of the file, where the table begins, its length (u64 each)
//! 40        SHA-256 of the table
//! 72        SHA-256 of the 72 bytes before
//! 104       zeros, up to
//! 4096      the panels of the matrices, each at a multiple of 64, with zeros between
//! table at  JSON: what the panels were packed from, the matrices in order, a sum of each 4 MiB of the file
//! ```
//!
//! All numbers are little-endian. Nothing in it is trusted before it is checked, and all of it is checked
//! before any of it is used: head and table by their hashes, the panels by their sums, on all threads and at
//! the speed of memory, which brings them in at the same time. The sums find what happens to files (a write
//! that was cut off, a disk that forgets, an editor); against somebody who means to deceive, and can write
//! into the user's cache, there is no help here, as there is none against one who changes the model itself.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{PARAGRAPH, shortened};
use crate::kernels::{Ops, Panels};
use crate::weights::{Bytes, WeightType};

const MAGIC: &[u8; 8] = b"tallowPW";
const FORMAT: u32 = 1;
const HEAD: usize = 4096;
/// Where the hash of the head stands: behind all that it is of.
const HEAD_SUM: usize = 72;
/// What has one sum, and is written at once. A multiple of the pages that a system may have.
const PIECE: usize = 4 << 20;
const ALIGN: usize = 64;

/// What packed weights are of: those of another origin are not used.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// What was loaded: for people, and for `tallow list`.
    pub source: String,
    pub quantize: Option<String>,
    /// Of this program, and of the layout of panels.
    pub version: String,
    /// A hash of the blueprint and of the stamps of the files.
    pub key: String,
}

#[derive(Serialize, Deserialize)]
struct Table {
    origin: Origin,
    matrices: Vec<Row>,
    sums: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    name: String,
    dtype: String,
    n: usize,
    k: usize,
    at: usize,
    bytes: usize,
}

/// A file that was found to be whole.
pub(super) struct PackedFile {
    matrices: Vec<Row>,
    bytes: Bytes,
}

impl PackedFile {
    /// The file at `path`, if it is there.
    ///
    /// # Errors
    /// Why it is not used.
    pub fn open(path: &Path, origin: &Origin, ops: &Ops) -> Result<Option<PackedFile>, String> {
        if !path.exists() {
            return Ok(None);
        }
        let bytes = Bytes::map_file(path).map_err(|error| error.message().to_owned())?;
        let (table, panels) = table(&bytes)?;
        if table.origin.version != origin.version {
            return Err("it was packed by another version".into());
        }
        if table.origin != *origin {
            return Err("it was packed from other files than are there now".into());
        }
        check_sums(&bytes, panels, &table.sums, ops)?;
        Ok(Some(PackedFile { matrices: table.matrices, bytes }))
    }

    /// The panels of matrix `at`, if it is this one.
    pub fn panels(&self, at: usize, name: &str, dtype: WeightType, shape: [usize; 2]) -> Option<Bytes> {
        let row = self.matrices.get(at)?;
        let is_it = row.name == name && row.dtype == dtype.name() && [row.n, row.k] == shape;
        let end = row.at.checked_add(row.bytes).filter(|_| is_it && row.at.is_multiple_of(ALIGN))?;
        self.bytes.slice(row.at..end).ok()
    }
}

/// What a file says that it was packed from.
pub(super) fn origin(path: &Path) -> Result<Origin, String> {
    let bytes = Bytes::map_file(path).map_err(|error| error.message().to_owned())?;
    Ok(table(&bytes)?.0.origin)
}

/// Takes a file for what it says it is, and makes every matrix of it: how many there are.
///
/// # Errors
/// Why it is not used, or what of it is not.
pub fn read_as_said(path: &Path, ops: &Ops) -> Result<usize, String> {
    let file = PackedFile::open(path, &origin(path)?, ops)?.ok_or("there is no such file")?;
    for (at, row) in file.matrices.iter().enumerate() {
        let dtype = WeightType::ALL.into_iter().find(|dtype| dtype.name() == row.dtype);
        let dtype = dtype.ok_or("it holds a type that is not known")?;
        let shape = [row.n, row.k];
        let panels = file.panels(at, &row.name, dtype, shape).ok_or("its panels lie outside of it")?;
        ops.kept_matrix(&row.name, dtype, shape, panels).map_err(|error| error.message().to_owned())?;
    }
    Ok(file.matrices.len())
}

/// The file of a table and of the panels before it, whatever they hold.
pub fn of_parts(table: &[u8], panels: &[u8]) -> Vec<u8> {
    let mut bytes = head(HEAD + panels.len(), table);
    bytes.resize(HEAD, 0);
    [&bytes, panels, table].concat()
}

/// The sums that a table has of these panels.
pub fn sums_of(panels: &[u8]) -> Vec<u64> {
    pieces(HEAD..HEAD + panels.len())
        .map(|piece| sum(&panels[piece.start - HEAD..piece.end - HEAD]))
        .collect()
}

/// The table, and where the panels are.
fn table(bytes: &[u8]) -> Result<(Table, Range<usize>), String> {
    let head = bytes.get(..HEAD).ok_or("it was cut off")?;
    let number = |at: usize| head[at..].first_chunk().map_or(0, |number| u64::from_le_bytes(*number));
    if !head.starts_with(MAGIC) {
        return Err("it holds no packed weights".into());
    }
    if head[8..16] != u64::from(FORMAT).to_le_bytes() {
        return Err("it is of another version".into());
    }
    let sum = Sha256::digest(&head[..HEAD_SUM]);
    if head[HEAD_SUM..HEAD_SUM + 32] != *sum || head[HEAD_SUM + 32..].iter().any(|&byte| byte != 0) {
        return Err("its head was altered".into());
    }
    if number(16) != bytes.len() as u64 {
        return Err("it was cut off".into());
    }
    let place = |at: usize| usize::try_from(number(at)).unwrap_or(usize::MAX);
    let (start, length) = (place(24), place(32));
    let end = start.checked_add(length);
    let json = end.filter(|&end| end == bytes.len() && start >= HEAD).and_then(|end| bytes.get(start..end));
    let json = json.ok_or("its table lies outside of it")?;
    if head[40..HEAD_SUM] != *Sha256::digest(json) {
        return Err("its table was altered".into());
    }
    let unread = |error| format!("its table cannot be read: {}", shortened(error, PARAGRAPH));
    let table = serde_json::from_slice(json).map_err(unread)?;
    Ok((table, HEAD..start))
}

/// The pieces of the panels: where they begin and end in the file.
fn pieces(panels: Range<usize>) -> impl ExactSizeIterator<Item = Range<usize>> {
    let count = panels.end.div_ceil(PIECE);
    (0..count).map(move |at| (at * PIECE).max(panels.start)..((at + 1) * PIECE).min(panels.end))
}

fn check_sums(bytes: &Bytes, panels: Range<usize>, sums: &[u64], ops: &Ops) -> Result<(), String> {
    let pieces: Vec<_> = pieces(panels).collect();
    if pieces.len() != sums.len() {
        return Err("its table has another number of sums".into());
    }
    let sound = AtomicBool::new(true);
    let check = |at: usize| {
        if sound.load(Ordering::Relaxed) && sum(&bytes[pieces[at].clone()]) != sums[at] {
            sound.store(false, Ordering::Relaxed);
        }
    };
    ops.parallel_for("check packed", pieces.len(), &check).map_err(|error| error.message().to_owned())?;
    if sound.into_inner() { Ok(()) } else { Err("its weights were altered".into()) }
}

/// A sum of some bytes, 64 a round. Every step can be undone, so that any change within one of the words of
/// eight bytes changes the sum; two changes cancel each other with a chance of 2^-64.
fn sum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let mut lanes = [1u64, 2, 3, 4, 5, 6, 7, 8];
    let (blocks, rest) = bytes.as_chunks::<64>();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks().0) {
            *lane = step(*lane, u64::from_le_bytes(*word));
        }
    }
    let rest = rest.iter().map(|&byte| u64::from(byte));
    lanes.into_iter().chain(rest).fold(bytes.len() as u64, step)
}

/// The panels of a matrix, with its name and shape `[n, k]`.
pub(super) type Named = (String, [usize; 2], Panels);

/// Writes a file; its name must not be one that anybody opens. `pace` is called between pieces, and may end
/// it.
pub(super) fn write(
    path: &Path,
    origin: &Origin,
    panels: &[Named],
    pace: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let mut out =
        Pieces { file: File::create_new(path)?, piece: Vec::new(), at: HEAD, sums: Vec::new(), pace };
    out.file.write_all(&[0; HEAD])?;
    let mut matrices = Vec::with_capacity(panels.len());
    for (name, [n, k], panels) in panels {
        out.put(&[0; ALIGN][..out.at.next_multiple_of(ALIGN) - out.at])?;
        let dtype = panels.dtype().name().to_owned();
        matrices.push(Row { name: name.clone(), dtype, n: *n, k: *k, at: out.at, bytes: panels.len() });
        out.put(panels)?;
    }
    out.end_piece()?;
    let Pieces { mut file, at: start, sums, .. } = out;
    let json = serde_json::to_vec(&Table { origin: origin.clone(), matrices, sums })?;
    file.write_all(&json)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&head(start, &json))
}

/// The bytes of the head of a file whose table begins at `start`.
pub(super) fn head(start: usize, table: &[u8]) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    for number in [u64::from(FORMAT), (start + table.len()) as u64, start as u64, table.len() as u64] {
        head.extend(number.to_le_bytes());
    }
    head.extend(Sha256::digest(table));
    head.extend(Sha256::digest(&head));
    head
}

/// A file that is written piece by piece.
struct Pieces<'a> {
    file: File,
    piece: Vec<u8>,
    /// Bytes of the file, with those of the piece.
    at: usize,
    sums: Vec<u64>,
    pace: &'a mut dyn FnMut() -> io::Result<()>,
}

impl Pieces<'_> {
    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.at % PIECE));
            self.piece.extend_from_slice(now);
            self.at += now.len();
            bytes = later;
            if self.at.is_multiple_of(PIECE) {
                self.end_piece()?;
            }
        }
        Ok(())
    }

    fn end_piece(&mut self) -> io::Result<()> {
        if !self.piece.is_empty() {
            self.file.write_all(&self.piece)?;
            self.sums.push(sum(&self.piece));
            self.piece.clear();
            (self.pace)()?;
        }
        Ok(())
    }
}
