//! Which of the layouts a path is.

use std::path::{Path, PathBuf};

use super::{AdapterFile, gguf, mlx, peft};
use crate::config::json;
use crate::error::{Error, Result};
use crate::weights::{Format, detect};

/// Reads an adapter: a folder of peft or mlx-lm, the safetensors file in one, or a GGUF file.
///
/// No model is needed: what can only be held against one is checked where it is bound.
///
/// # Errors
/// `ModelFile` when files are missing, damaged, or do not belong together; `UnsupportedModel` for what is not
/// run, by name.
pub fn open(path: &Path) -> Result<AdapterFile> {
    if path.is_dir() {
        return in_folder(path);
    }
    match detect(path)? {
        Format::Gguf => gguf::open(path),
        Format::Safetensors => of_tensors(path, path),
    }
}

/// Of the tensors of a folder: its configuration tells peft and mlx-lm apart.
fn of_tensors(tensors: &Path, source: &Path) -> Result<AdapterFile> {
    let config = tensors.with_file_name(peft::CONFIG);
    match json::read_object(&config)? {
        Some(root) if mlx::is_config(&root) => mlx::open(&config, tensors, source),
        _ => peft::open(&config, tensors, source),
    }
}

fn in_folder(folder: &Path) -> Result<AdapterFile> {
    let file = |name: &str| -> Option<PathBuf> { Some(folder.join(name)).filter(|path| path.is_file()) };
    let tensors = file(peft::TENSORS).or_else(|| file(mlx::TENSORS)).ok_or_else(|| nothing(folder))?;
    of_tensors(&tensors, folder)
}

fn nothing(folder: &Path) -> Error {
    if folder.join("adapter_model.bin").is_file() {
        return Error::unsupported(format!(
            "{}: adapter_model.bin is a pickle; loading one can run any code, so it is never loaded: save the \
             adapter again with safe_serialization=True",
            folder.display()
        ));
    }
    Error::model_file(format!("{}: there is no {} in this folder", folder.display(), peft::TENSORS))
}
