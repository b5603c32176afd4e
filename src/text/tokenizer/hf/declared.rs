//! Tokens that stand beside `tokenizer.json` and not in it.
//!
//! `tokenizer_config.json` lists added tokens by id (`added_tokens_decoder`), names special ones
//! (`bos_token`, `image_token`, …) and lists more of those (`extra_special_tokens`, once
//! `additional_special_tokens`). Before there was `added_tokens_decoder`, `special_tokens_map.json` named
//! them and `added_tokens.json` gave the ids; both count only where it is missing. transformers 5 adds all of
//! them to what `tokenizer.json` has, in this order, and so does this module: a token that the template
//! writes must not be cut into pieces.
//!
//! The crate gives a new token the next free id. One that was declared with another id is refused: the model
//! was trained with one of the two, and no file says with which.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::config::json;
use crate::error::{Context, Error, Result, quoted};

const CONFIG: &str = "tokenizer_config.json";
const SPECIALS: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// The special tokens that every tokenizer may name, in the order in which transformers adds them.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The files beside `tokenizer.json`; `Null` where there is none.
pub(super) struct Beside {
    config: Value,
    specials: Value,
    added: Value,
}

impl Beside {
    pub fn read(dir: &Path) -> Result<Self> {
        let config = json::read(&dir.join(CONFIG))?.unwrap_or_default();
        let legacy = config["added_tokens_decoder"].is_null();
        let older = |name: &str| match legacy {
            true => json::read(&dir.join(name)).map(Option::unwrap_or_default),
            false => Ok(Value::Null),
        };
        Ok(Beside { specials: older(SPECIALS)?, added: older(ADDED)?, config })
    }

    /// The text of a special token by its name.
    pub fn token(&self, name: &str) -> Option<&str> {
        token_text(&self.specials[name]).or_else(|| token_text(&self.config[name]))
    }

    /// The tokens with a name: those of [`NAMES`], then the model's own (`image_token`).
    fn named(&self) -> Vec<AddedToken> {
        let all = NAMES.iter().map(|name| match &self.specials[name] {
            value if token_text(value).is_some() => value,
            _ => &self.config[name],
        });
        let own = [&self.specials, &self.config].into_iter().filter_map(Value::as_object).flatten();
        let own = own.filter(|(name, _)| name.ends_with("_token") && !NAMES.contains(&name.as_str()));
        let by_name = [&self.config, &self.specials];
        let by_name =
            by_name.into_iter().filter_map(|file| file["extra_special_tokens"].as_object()).flatten();
        all.chain(own.chain(by_name).map(|(_, value)| value)).filter_map(special).collect()
    }

    /// The special tokens without a name; of several lists the first counts.
    fn extra(&self) -> Vec<AddedToken> {
        let lists = [
            &self.config["extra_special_tokens"],
            &self.config["additional_special_tokens"],
            &self.specials["extra_special_tokens"],
            &self.specials["additional_special_tokens"],
        ];
        let list = lists.into_iter().filter_map(Value::as_array).find(|list| !list.is_empty());
        list.into_iter().flatten().filter_map(special).collect()
    }

    /// The tokens with an id, by id.
    fn numbered(&self, special: impl Fn(&str) -> bool) -> Result<Vec<(u64, AddedToken)>> {
        let mut tokens = Vec::new();
        for (id, value) in self.config["added_tokens_decoder"].as_object().into_iter().flatten() {
            let token = value["content"].as_str().map(|content| flags(content, value));
            let token = id.parse().ok().zip(token).ok_or_else(|| {
                Error::model_file(format!(
                    "{CONFIG}: added_tokens_decoder[{}] is not an id with a token",
                    quoted(id)
                ))
            })?;
            tokens.push(token);
        }
        for (content, id) in self.added.as_object().into_iter().flatten() {
            let id = id.as_u64().ok_or_else(|| {
                Error::model_file(format!("{ADDED}: {} has no whole number as its id", quoted(content)))
            })?;
            tokens.push((id, AddedToken::from(content.as_str(), special(content))));
        }
        tokens.sort_by_key(|(id, _)| *id);
        Ok(tokens)
    }
}

/// Adds what the files declare and the tokenizer lacks.
///
/// # Errors
/// `ModelFile` naming a token whose declared id is not the one it gets.
pub(super) fn complete(tokenizer: &mut tokenizers::Tokenizer, beside: &Beside) -> Result<()> {
    let (named, extra) = (beside.named(), beside.extra());
    let names: HashSet<&str> = named.iter().map(|token| token.content.as_str()).collect();
    let extras: HashSet<&str> = extra.iter().map(|token| token.content.as_str()).collect();
    let numbered = beside.numbered(|text| names.contains(text) || extras.contains(text))?;
    let decoder = tokenizer.get_added_tokens_decoder();
    let known: HashMap<&str, &AddedToken> =
        decoder.values().map(|token| (token.content.as_str(), token)).collect();

    let mut tokens: Vec<AddedToken> = numbered.iter().map(|(_, token)| token.clone()).collect();
    if beside.config["added_tokens_decoder"].is_null() {
        let listed: HashSet<&str> = numbered.iter().map(|(_, token)| token.content.as_str()).collect();
        let mut own: Vec<_> = decoder.iter().filter(|(_, t)| !listed.contains(t.content.as_str())).collect();
        own.sort_unstable_by_key(|(id, _)| **id);
        tokens.extend(own.into_iter().map(|(_, token)| token.clone()));
    }
    for token in &mut tokens {
        // what is special stays special, and whatever has a name becomes it
        let was_special = known.get(token.content.as_str()).is_some_and(|known| known.special);
        token.special |= was_special || names.contains(token.content.as_str());
    }
    let mut seen: HashSet<String> = decoder.values().chain(&tokens).map(|t| t.content.clone()).collect();
    tokens.extend(named.iter().chain(&extra).filter(|token| seen.insert(token.content.clone())).cloned());
    tokens.retain(|token| known.get(token.content.as_str()) != Some(&token));
    if tokens.is_empty() {
        return Ok(());
    }
    let fresh: Vec<&(u64, AddedToken)> =
        numbered.iter().filter(|(_, token)| tokenizer.token_to_id(&token.content).is_none()).collect();
    tokenizer.add_tokens(tokens).map_err(super::failed)?;
    for (id, token) in fresh.into_iter().filter(|(_, token)| !token.content.is_empty()) {
        let given = tokenizer.token_to_id(&token.content);
        if given.map(u64::from) != Some(*id) {
            return Err(Error::model_file(format!(
                "{} is declared with the id {id}; tokenizer.json does not have it, and the next free id is {}: \
                 add it to the added_tokens of tokenizer.json",
                quoted(&token.content),
                given.map_or("none".into(), |given| given.to_string())
            )))
            .context(if beside.added.is_null() { CONFIG } else { ADDED });
        }
    }
    Ok(())
}

/// A token in a configuration: its text, or an object with it.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// A special token as a configuration writes it.
fn special(value: &Value) -> Option<AddedToken> {
    let content = token_text(value)?;
    Some(if value.is_object() { flags(content, value) } else { AddedToken::from(content, true) })
        .map(|token| token.special(true))
}

/// An added token with the flags of an object.
fn flags(content: &str, value: &Value) -> AddedToken {
    let flag = |name: &str| value[name].as_bool();
    let special = flag("special").unwrap_or(false);
    AddedToken::from(content, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!special))
}
