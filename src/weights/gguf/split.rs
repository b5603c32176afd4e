//! Models in several GGUF files: which files, in which order, and that they belong together.
//!
//! `gguf-split` of llama.cpp names part i of n `PREFIX-0000i-of-0000n.gguf` (from 1) and writes into each
//! part `split.no` (from 0), `split.count`, and the number of tensors of the whole in `split.tensors.count`.

use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use crate::error::{Error, Result};

const NO_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
pub(super) const TENSORS_KEY: &str = "split.tensors.count";

const ENDING: &str = ".gguf";

/// The files beside `path` that make the model whole, with their index; none when it is not split.
pub(super) fn other_parts(path: &Path, metadata: &Metadata) -> Result<Vec<(u64, PathBuf)>> {
    let count = metadata.u64(COUNT_KEY)?.unwrap_or(0);
    let number = metadata.u64(NO_KEY)?.unwrap_or(0);
    if count <= 1 && number == 0 {
        return Ok(Vec::new());
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // Some files are named .GGUF, and then their other parts are, too.
    let ending = name.get(name.len().saturating_sub(ENDING.len())..).unwrap_or_default();
    let ending = if ending.eq_ignore_ascii_case(ENDING) { ending } else { ENDING };
    let part_name = |prefix: &str, number, count| format!("{}{ending}", part_stem(prefix, number, count));
    let prefix = |number, count| name.strip_suffix(&part_name("", number, count));
    if number != 0 {
        return Err(Error::model_file(format!(
            "this is part {} of {count} of a split model; open the first part, {}",
            number.saturating_add(1),
            prefix(number.saturating_add(1), count)
                .map_or("NAME-00001-of-…".into(), |prefix| part_name(prefix, 1, count))
        )));
    }
    let Some(prefix) = prefix(1, count) else {
        return Err(Error::model_file(format!(
            "this is the first of {count} parts, and to find the others its name must end in {}",
            part_name("", 1, count)
        )));
    };
    // A claim of many parts costs nothing: they are looked for one by one.
    let mut parts = Vec::new();
    for number in 1..count {
        let part = path.with_file_name(part_name(prefix, number + 1, count));
        if !part.is_file() {
            return Err(Error::model_file(format!(
                "part {} of {count} is missing: {}; put all parts into one folder",
                number + 1,
                part.display()
            )));
        }
        parts.push((number, part));
    }
    Ok(parts)
}

/// That the part with index `number` belongs to the model that begins with `first`.
pub(super) fn check_part(part: &Metadata, first: &Metadata, number: u64) -> Result<()> {
    for (key, wanted) in [(NO_KEY, Some(number)), (COUNT_KEY, first.u64(COUNT_KEY)?)] {
        let found = part.u64(key)?;
        if found != wanted {
            let show = |value: Option<u64>| value.map_or("absent".to_owned(), |value| value.to_string());
            return Err(Error::model_file(format!(
                "this is not the part that its name says: {key} is {} and should be {}",
                show(found),
                show(wanted)
            )));
        }
    }
    Ok(())
}

/// The name of part `number`, from 1, without its ending.
fn part_stem(prefix: &str, number: u64, count: u64) -> String {
    format!("{prefix}-{number:05}-of-{count:05}")
}
