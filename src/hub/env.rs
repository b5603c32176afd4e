//! What the environment says about names: where caches are, who we are, whether the network may be asked.
//!
//! Everything is read through [`Env`], a value, so that a test states its environment instead of changing
//! the process's own (which other threads read at the same time). The variables and their order are those of
//! the `huggingface_hub` Python package (`huggingface_hub/constants.py`), so both programs share one cache.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// Where variables are looked up.
#[derive(Clone, Debug)]
pub enum Env {
    /// The environment of this process.
    Process,
    /// Exactly these, and no proxy.
    Fixed(HashMap<String, String>),
}

impl Env {
    pub fn fixed<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Env::Fixed(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }

    /// The variable, `None` where it is unset or empty.
    pub fn get(&self, name: &str) -> Option<String> {
        let value = match self {
            Env::Process => std::env::var(name).ok(),
            Env::Fixed(map) => map.get(name).cloned(),
        };
        value.filter(|text| !text.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(|text| self.expand(&text))
    }

    fn flag(&self, name: &str) -> bool {
        let value = self.get(name).unwrap_or_default().to_ascii_lowercase();
        matches!(value.as_str(), "1" | "on" | "yes" | "true")
    }

    fn home(&self) -> Option<PathBuf> {
        let named = self.get("HOME").or_else(|| self.get("USERPROFILE")).map(PathBuf::from);
        match self {
            Env::Process => named.or_else(std::env::home_dir),
            Env::Fixed(_) => named,
        }
    }

    /// `~` and `~/x` become the home folder; anything else stays.
    pub fn expand(&self, text: &str) -> PathBuf {
        let rest = match text {
            "~" => Some(""),
            _ => text.strip_prefix("~/").or_else(|| text.strip_prefix("~\\")),
        };
        match (rest, self.home()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        }
    }

    fn cache_home(&self) -> Result<PathBuf> {
        let found = self.path("XDG_CACHE_HOME").or_else(|| self.home().map(|home| home.join(".cache")));
        found.ok_or_else(|| {
            Error::hub("there is no home folder to keep models in; set HF_HOME and TALLOW_CACHE to folders")
        })
    }

    fn hf_home(&self) -> Result<PathBuf> {
        match self.path("HF_HOME") {
            Some(path) => Ok(path),
            None => Ok(self.cache_home()?.join("huggingface")),
        }
    }

    /// The folder with the `models--org--name` folders.
    pub fn hub_cache(&self) -> Result<PathBuf> {
        match self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE")) {
            Some(path) => Ok(path),
            None => Ok(self.hf_home()?.join("hub")),
        }
    }

    /// Our own cache: hashes of files, and what came out of data wheels.
    pub fn own_cache(&self) -> Result<PathBuf> {
        match self.path("TALLOW_CACHE") {
            Some(path) => Ok(path),
            None => Ok(self.cache_home()?.join("tallow")),
        }
    }

    /// The hub's address, without a slash at its end.
    pub fn endpoint(&self) -> Result<String> {
        let text = self.get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let text = text.trim_end_matches('/').to_string();
        if text.starts_with("https://") || text.starts_with("http://") {
            return Ok(text);
        }
        Err(Error::hub(format!("HF_ENDPOINT is {text:?}; it must start with https:// or http://")))
    }

    /// The token to show to the hub: from the environment, else the one that `hf auth login` saved.
    pub fn token(&self) -> Option<String> {
        if self.flag("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return None;
        }
        let named = self.get("HF_TOKEN").or_else(|| self.get("HUGGING_FACE_HUB_TOKEN"));
        let token = named.or_else(|| std::fs::read_to_string(self.token_path()?).ok())?;
        // A line end inside would let a token file write headers of its own.
        let token = token.trim();
        (!token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic())).then(|| token.to_string())
    }

    fn token_path(&self) -> Option<PathBuf> {
        self.path("HF_TOKEN_PATH").or_else(|| Some(self.hf_home().ok()?.join("token")))
    }

    /// The variable that forbids the network, if one does.
    pub fn offline(&self) -> Option<&'static str> {
        ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| self.flag(name))
    }

    /// How long a silent connection is waited for.
    pub fn read_timeout(&self) -> Duration {
        let seconds = self.get("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse::<u64>().ok());
        Duration::from_secs(seconds.unwrap_or(20).clamp(1, 3600))
    }

    /// A file of root certificates instead of the built-in ones: a company's proxy has its own.
    pub fn ca_bundle(&self) -> Option<PathBuf> {
        ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"].into_iter().find_map(|name| self.path(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn env(pairs: Pairs) -> Env {
        Env::fixed(pairs.iter().copied())
    }

    #[test]
    fn caches_follow_the_published_order() {
        let home = ("HOME", "/h");
        let rows: &[(Pairs, &str)] = &[
            (&[home], "/h/.cache/huggingface/hub"),
            (&[home, ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[home, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[home, ("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[home, ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[home, ("HF_HUB_CACHE", "")], "/h/.cache/huggingface/hub"),
        ];
        for (pairs, expected) in rows {
            assert_eq!(env(pairs).hub_cache().unwrap(), PathBuf::from(expected), "{pairs:?}");
        }
        assert_eq!(env(&[home]).own_cache().unwrap(), PathBuf::from("/h/.cache/tallow"));
        assert_eq!(env(&[home, ("TALLOW_CACHE", "/t")]).own_cache().unwrap(), PathBuf::from("/t"));
        assert!(env(&[]).hub_cache().unwrap_err().message().contains("HF_HOME"));
    }

    #[test]
    fn tokens_come_from_variables_then_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "saved\n").unwrap();
        std::fs::write(folder.path().join("other"), "other").unwrap();
        let home = folder.path().to_str().unwrap();
        let other = format!("{home}/other");
        let rows: &[(Pairs, Option<&str>)] = &[
            (&[("HF_HOME", home)], Some("saved")),
            (&[("HF_HOME", home), ("HF_TOKEN_PATH", &other)], Some("other")),
            (&[("HF_HOME", home), ("HUGGING_FACE_HUB_TOKEN", "old")], Some("old")),
            (&[("HUGGING_FACE_HUB_TOKEN", "old"), ("HF_TOKEN", " new ")], Some("new")),
            (&[("HF_TOKEN", "t"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None),
            (&[("HF_TOKEN", "t\r\nX-Evil: 1")], None),
            (&[("HF_HOME", "/does/not/exist")], None),
        ];
        for (pairs, expected) in rows {
            assert_eq!(env(pairs).token().as_deref(), *expected, "{pairs:?}");
        }
    }

    #[test]
    fn switches_and_addresses() {
        for (value, on) in
            [("1", true), ("YES", true), ("true", true), ("On", true), ("0", false), ("no", false)]
        {
            assert_eq!(env(&[("HF_HUB_OFFLINE", value)]).offline().is_some(), on, "{value}");
        }
        assert_eq!(env(&[("TRANSFORMERS_OFFLINE", "1")]).offline(), Some("TRANSFORMERS_OFFLINE"));
        assert_eq!(env(&[]).endpoint().unwrap(), "https://huggingface.co");
        assert_eq!(env(&[("HF_ENDPOINT", "http://m:1/x//")]).endpoint().unwrap(), "http://m:1/x");
        assert!(env(&[("HF_ENDPOINT", "mirror")]).endpoint().unwrap_err().message().contains("HF_ENDPOINT"));
    }
}
