//! The pre-tokenizers: how a text is cut into words before byte-level BPE.
//!
//! A GGUF file names its rule in `tokenizer.ggml.pre`. [`RULES`] is the whole list; a name that is not in it
//! is refused, because a wrong cut gives tokens that the model has never seen and an answer that is only
//! slightly bad, which nobody notices. The patterns are those of the families' own `tokenizer.json`, applied
//! one after the other: each cuts what the one before left, a match is a word, and so is what lies between
//! two matches.
//!
//! The originals end in `\s+(?!\S)|\s+`: white space before a word leaves its last character to that word.
//! The `regex` crate has no look-ahead and is ten times faster than the ones that do, so the patterns end in
//! `\s+` here and [`Spaces`] gives the last character back.
//!
//! Of the names that llama.cpp knows, these are not here: those whose patterns look ahead elsewhere
//! ("jais-2", "tiny_aya", "cohere2moe", "superbpe", "kimi-k2", "afmoe"), those without byte-level tokens
//! ("sarvam-moe", "whitespace"; "gemma4" is a kind of tokenizer of its own in `bpe`), those of encoders
//! ("roberta-bpe", "jina-v1-en", "jina-v2-code", "granite-embed-multi-…"), "chameleon", whose tokens are
//! images, "default", which is a rule of no model, and "deepseek-llm", whose letters are a list of ranges.

use regex::Regex;

use super::gguf::REMEDY;
use crate::error::{Error, Result, quoted};

/// What becomes of the last character of white space that stands before a word.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spaces {
    /// It stays: the pattern says nothing about white space.
    Keep,
    /// It goes to the word.
    Leave,
    /// It goes to the word unless it is a line break: the pattern has an alternative for those, before `\s+`.
    LeaveUnlessBreak,
}

struct Rule {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// For the pattern that ends in `\s+`.
    spaces: Spaces,
    /// A word that is a token is that token, whatever the merges say (`ignore_merges` in tokenizer.json).
    whole_words: bool,
    /// Whether BOS is the default when the file does not say.
    add_bos: bool,
}

pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
const SEED: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+";
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
);
const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
);
const DEEPSEEK: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+",
);
const SPARK: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+",
);
const YOUTU: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
);
const MINICPM5: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
const BAILING: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+",
);
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const EXAONE_MOE: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+",
);
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const HAN: &str = r"[一-龥ࠀ-一가-퟿]+";

const RULES: &[Rule] = &[
    // GPT-2, Phi-1.5 and Phi-2, MPT, OLMo, EXAONE 4, Granite Docling, GigaChat, Trillion
    Rule {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "exaone4",
            "granite-docling",
            "gigachat",
            "trillion",
            "jais",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
        ],
        patterns: &[GPT2],
        spaces: Spaces::Leave,
        whole_words: false,
        add_bos: false,
    },
    // the same after single digits: SmolLM 1-3, StarCoder, Refact, Command-R, CodeShell, EXAONE 3, Minerva
    Rule {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        patterns: &[r"\p{N}", GPT2],
        spaces: Spaces::Leave,
        whole_words: false,
        add_bos: false,
    },
    // Llama 3 and what was trained with its vocabulary or its rule: Falcon 3 and H1, LFM2, Pixtral's text
    // part
    Rule {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "lfm2",
            "pixtral",
            "midm-2.0",
            "jina-v5-nano",
        ],
        patterns: &[LLAMA3],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: true,
        add_bos: true,
    },
    // the same rule without BOS: GLM 4 and 5
    Rule {
        names: &["glm4", "glm5"],
        patterns: &[LLAMA3],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: true,
        add_bos: false,
    },
    // and merges always: DBRX, Phi-4 (it says "dbrx"), Smaug, ChatGLM
    Rule {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        patterns: &[LLAMA3],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: false,
        add_bos: false,
    },
    // Qwen 2, 2.5 and 3, DeepSeek's distillations of them, StableLM 2, Megrez, Hunyuan, Grok 2
    Rule {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "megrez",
            "hunyuan",
            "grok-2",
            "kormo",
            "f2llmv2",
            "solar-open",
        ],
        patterns: &[QWEN2],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: false,
        add_bos: false,
    },
    // Qwen 3.5: marks belong to words
    Rule {
        names: &["qwen35"],
        patterns: &[QWEN35],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: false,
        add_bos: false,
    },
    // Mistral NeMo, Small, Ministral
    Rule {
        names: &["tekken"],
        patterns: &[TEKKEN],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: true,
        add_bos: true,
    },
    // o200k: GPT-4o's rule, in Phi-4-mini, Llama 4, gpt-oss, MiniMax M2
    Rule {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        patterns: &[O200K],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: false,
        add_bos: false,
    },
    // DeepSeek Coder 1
    Rule {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, r"\p{N}"],
        spaces: Spaces::Keep,
        whole_words: false,
        add_bos: false,
    },
    // DeepSeek 2.5, 3 and R1; Hunyuan's dense models
    Rule {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        patterns: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: false,
        add_bos: false,
    },
    // Seed-Coder
    Rule {
        names: &["seed-coder"],
        patterns: &[SEED],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: false,
        add_bos: false,
    },
    // Laguna: lines, each as Qwen 2
    Rule {
        names: &["laguna"],
        patterns: &[r"[^\n]+|[\n]+", QWEN2],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: false,
        add_bos: false,
    },
    // MiniCPM 5
    Rule {
        names: &["minicpm5"],
        patterns: &[r"\p{N}{1,3}", MINICPM5],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: true,
        add_bos: false,
    },
    // Ling, Ring and LLaDA
    Rule {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        patterns: &[BAILING],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: false,
        add_bos: false,
    },
    // EXAONE's mixture: letters that single spaces part are one word
    Rule {
        names: &["exaone-moe"],
        patterns: &[EXAONE_MOE],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: false,
        add_bos: false,
    },
    // Qwen 2's rule without English contractions
    Rule {
        names: &["ufakzeka"],
        patterns: &[UFAKZEKA],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: false,
        add_bos: false,
    },
    // Youtu: scripts of East Asia first, then as o200k with single digits
    Rule {
        names: &["youtu"],
        patterns: &[r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+", YOUTU],
        spaces: Spaces::LeaveUnlessBreak,
        whole_words: true,
        add_bos: false,
    },
    // Spark 2.5
    Rule {
        names: &["spark2_5"],
        patterns: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", SPARK, r"\p{N}"],
        spaces: Spaces::Leave,
        whole_words: false,
        add_bos: false,
    },
    // Falcon 1 and 2
    Rule {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        spaces: Spaces::Leave,
        whole_words: false,
        add_bos: false,
    },
    // Bloom, Poro, GPT-3 Finnish
    Rule {
        names: &["bloom", "poro-chat", "gpt3-finnish"],
        patterns: &[BLOOM],
        spaces: Spaces::Keep,
        whole_words: false,
        add_bos: false,
    },
    // Viking
    Rule {
        names: &["viking"],
        patterns: &[BLOOM, r"\p{N}"],
        spaces: Spaces::Keep,
        whole_words: false,
        add_bos: false,
    },
];

/// All names, sorted.
fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
    names.sort_unstable();
    names
}

/// The name of the rule with these patterns.
pub(super) fn rule_of(patterns: &[String], whole_words: bool) -> Option<&'static str> {
    let same = |rule: &&Rule| rule.patterns == patterns && rule.whole_words == whole_words;
    RULES.iter().find(same).and_then(|rule| rule.names.first()).copied()
}

/// One rule, compiled.
pub(super) struct Splitter {
    rule: &'static Rule,
    patterns: Vec<Regex>,
}

impl Splitter {
    /// The rule with this name.
    ///
    /// # Errors
    /// `UnsupportedModel` for any other name.
    pub fn named(name: &str) -> Result<Self> {
        let rule = RULES.iter().find(|rule| rule.names.contains(&name)).ok_or_else(|| {
            Error::unsupported(format!(
                "the tokenizer splits words by a rule named {} (tokenizer.ggml.pre), which is not known here; \
                 {REMEDY}; the rules known are {}",
                quoted(name),
                names().join(", ")
            ))
        })?;
        let compile =
            |pattern: &&str| Regex::new(pattern).map_err(|error| Error::internal(error.to_string()));
        Ok(Splitter { rule, patterns: rule.patterns.iter().map(compile).collect::<Result<_>>()? })
    }

    pub fn whole_words(&self) -> bool {
        self.rule.whole_words
    }

    pub fn add_bos(&self) -> bool {
        self.rule.add_bos
    }

    /// Calls `word` with every word of the text, in order; together they are the text.
    pub fn split(&self, text: &str, word: &mut dyn FnMut(&str)) {
        self.split_by(&self.patterns, text, word);
    }

    fn split_by(&self, patterns: &[Regex], text: &str, word: &mut dyn FnMut(&str)) {
        let Some((pattern, rest)) = patterns.split_first() else { return word(text) };
        let spaces = if pattern.as_str().ends_with(r"\s+") { self.rule.spaces } else { Spaces::Keep };
        let mut done = 0;
        while let Some(found) = pattern.find_at(text, done).filter(|found| !found.is_empty()) {
            // between two matches: a word for the next pattern to cut
            match text.get(done..found.start()) {
                Some(between) if !between.is_empty() => self.split_by(rest, between, word),
                _ => {}
            }
            let end = spaces.end(found.as_str(), found.end() == text.len());
            let matched = found.as_str().get(..end).unwrap_or_default();
            self.split_by(rest, matched, word);
            done = found.start() + matched.len();
        }
        match text.get(done..) {
            Some(last) if !last.is_empty() => self.split_by(rest, last, word),
            _ => {}
        }
    }
}

impl Spaces {
    /// Where a match ends once the white space at its end has given back what belongs to the next word.
    fn end(self, matched: &str, at_end: bool) -> usize {
        let Some(last) = matched.chars().next_back() else { return 0 };
        let keep = at_end
            || self == Spaces::Keep
            || matched.len() == last.len_utf8()
            || self == Spaces::LeaveUnlessBreak && matches!(last, '\r' | '\n')
            || !matched.chars().all(char::is_whitespace);
        matched.len() - if keep { 0 } else { last.len_utf8() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("gpt-2", "Hello  world\n\n x1 ", &["Hello", " ", " world", "\n\n", " x", "1", " "]),
            ("gpt-2", "it's \t a", &["it", "'s", " \t", " a"]),
            ("smollm", "a 123", &["a", " ", "1", "2", "3"]),
            ("llama-bpe", "IT'S 12345\n\n  end", &["IT", "'S", " ", "123", "45", "\n\n", " ", " end"]),
            ("qwen2", "x=10;\n\n", &["x", "=", "1", "0", ";\n\n"]),
            ("tekken", "HelloWorld a/\n", &["Hello", "World", " a", "/\n"]),
            ("gpt-4o", "Don't", &["Don't"]),
            ("deepseek-v3", "中文 ok1234", &["中文", " ok", "123", "4"]),
            ("gpt-2", "", &[]),
        ];
        for (name, text, wanted) in cases {
            let mut words = Vec::new();
            Splitter::named(name).unwrap().split(text, &mut |word| words.push(word.to_owned()));
            words.retain(|word| !word.is_empty());
            assert_eq!(words, *wanted, "{name}: {text:?}");
        }
    }

    #[test]
    fn every_rule_compiles_and_loses_nothing() {
        let text = "  I'm 42½ — naïve,\r\n\r\n\tJALAPEÑO's 中文かな 가나 \u{a0}\u{301} ٣٤٥ 🙂  end\u{85}\n ";
        for name in RULES.iter().flat_map(|rule| rule.names) {
            let mut joined = String::new();
            Splitter::named(name).unwrap().split(text, &mut |word| joined.push_str(word));
            assert_eq!(joined, text, "{name}");
        }
    }

    #[test]
    fn no_name_stands_twice() {
        let mut names = names();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
