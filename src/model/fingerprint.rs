//! A name for weights that two different models do not share.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Samples taken of a file, spread evenly, and the bytes of each. A fine-tune changes nearly every weight, a
/// conversion changes the header: both show in a few hundred places, and a model of 100 GB is named in an instant.
const SAMPLES: u64 = 256;
const SAMPLE_BYTES: u64 = 4096;
/// The start of a file holds its header; read more of it.
const HEADER_BYTES: u64 = 1 << 20;

/// 16 hexadecimal digits of a SHA-256 over the files' sizes and samples of them, and over `options`.
pub fn fingerprint<'a>(files: impl Iterator<Item = &'a Path>, options: &str) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(options.as_bytes());
    for path in files {
        sample(path, &mut hash)
            .map_err(|e| Error::model_file(format!("cannot read {}: {e}", path.display())).with_source(e))?;
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn sample(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    hash.update(size.to_le_bytes());
    let mut buffer = Vec::new();
    (&mut file).take(HEADER_BYTES).read_to_end(&mut buffer)?;
    hash.update(&buffer);
    for i in 0..SAMPLES {
        let at = (size / SAMPLES) * i;
        if at < HEADER_BYTES {
            continue;
        }
        file.seek(SeekFrom::Start(at))?;
        buffer.clear();
        (&mut file).take(SAMPLE_BYTES).read_to_end(&mut buffer)?;
        hash.update(&buffer);
    }
    Ok(())
}
