//! A folder of this thread, in memory where the system has such a place, for readers of files.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = {
        let memory = Path::new("/dev/shm");
        let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        made.unwrap()
    };
}

/// The path of a file in the folder.
pub fn path(name: &str) -> PathBuf {
    FOLDER.with(|folder| folder.path().join(name))
}

/// The folder with these files, and without others of these names where there is nothing to write.
pub fn with(files: &[(&str, &[u8])]) -> PathBuf {
    for (name, bytes) in files {
        // Removed first: a map of the file before must keep what it shows.
        let _ = std::fs::remove_file(path(name));
        if !bytes.is_empty() {
            std::fs::write(path(name), bytes).unwrap();
        }
    }
    FOLDER.with(|folder| folder.path().to_path_buf())
}
