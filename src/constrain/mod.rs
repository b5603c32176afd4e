//! Answers that keep to a form: a JSON schema, a regular expression, a Lark grammar, a choice of texts.
//!
//! | type | what it is |
//! |---|---|
//! | [`Constraint`] | what the user asked for |
//! | [`Vocabulary`] | a model's tokens as bytes, built once for a model |
//! | [`GrammarCompiler`] | constraints to grammars, under [`Limits`], with a cache |
//! | [`Grammar`] | a compiled constraint: shared, immutable |
//! | [`Matcher`] | one answer in the making, held against a grammar |
//! | [`Reserve`] | what the answer keeps back of its budget, so that it can close |
//! | [`TokenMask`], [`Mask`] | which tokens may come next; the filter that applies them |
//!
//! # How an answer runs
//! For each step the [`Matcher`] says which tokens may come ([`Matcher::mask`]), the sampler picks one of
//! them, and the matcher goes on with it ([`Matcher::accept`]). Where only one text can follow,
//! [`Matcher::forced`] gives its tokens: they are never sampled, but appended and computed as one chunk. A
//! draft is cut to what the grammar takes ([`Matcher::validate`]); tokens that leave no room for an end are
//! taken back ([`Matcher::rollback`]). When [`Matcher::is_done`], nothing but the end can follow; a token
//! that ends the answer is allowed only where [`Matcher::may_stop`].
//!
//! The work is llguidance's: derivatives of regular expressions as lexer, an Earley parser over it, and one
//! walk over the trie of the vocabulary a mask. It compiles in milliseconds and builds its automata while the
//! answer grows, which suits a library that meets a new schema with every signature. What stands here around
//! it: our own trie over our own tokenizers, limits, one place where its panics end, errors that a user can
//! act on, and a cache.
//!
//! # An answer that closes within its budget
//! A grammar alone does not end an answer: a string may grow until `max_tokens` cuts it off, and half an
//! object does not parse. So there is [`Matcher::closing`], tokens that take the answer from here to an end,
//! found by search (the library tells no distance to the end), and [`Reserve`], which keeps one rule: after
//! each token the closing fits into what is left. Before the first token, a grammar with no end within
//! `max_tokens` is the request's error or runs unreserved, as its caller likes. A sampled token whose closing
//! does not fit is taken back, and the closing from before it is appended as forced tokens. So the answer
//! ends complete.

mod closing;
mod compile;
mod exact;
mod formats;
mod integers;
mod lengths;
mod limits;
mod literals;
mod mask;
mod matcher;
mod nearest;
mod references;
mod rewrite;
mod schema;
mod vocabulary;

use serde_json::Value;

pub use closing::Reserve;
pub use compile::GrammarCompiler;
pub use limits::Limits;
pub use mask::{Mask, TokenMask};
pub use matcher::{Grammar, Matcher};
pub use vocabulary::Vocabulary;

/// What an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// JSON that a schema describes (draft 2020-12 and before; what cannot be enforced is an error, never
    /// ignored). Properties come in the order in which the schema has them. Integers are exact at any size. A
    /// `format` admits what its usual readers read, and a `maxLength` over 64 beside a pattern is shared out
    /// among the pattern's repetitions: some of the longest texts are given up for answers that end.
    ///
    /// It is written as Python's `json.dumps` does: `, ` and `: `, on one line. A small model otherwise fills
    /// its budget with white space, and no separator could be forced. `"x-guidance"` at the top of the schema
    /// replaces that (the keys are llguidance's: `whitespace_flexible`, `item_separator`, …).
    JsonSchema(Value),
    /// The whole answer matches this regular expression (the syntax of the `regex` crate, without look-around
    /// and back references; `^` and `$` around it are allowed and mean nothing).
    Regex(String),
    /// A grammar in llguidance's dialect of Lark, from its rule `start`.
    Lark(String),
    /// One of these texts.
    Choices(Vec<String>),
}

impl Constraint {
    /// JSON that this schema describes.
    ///
    /// ```
    /// # use serde_json::json;
    /// let schema = json!({"type": "object", "properties": {"nights": {"type": "integer", "minimum": 1}}});
    /// let constraint = tallow::Constraint::json_schema(schema);
    /// ```
    pub fn json_schema(schema: impl Into<Value>) -> Self {
        Constraint::JsonSchema(schema.into())
    }

    /// The whole answer matches this regular expression.
    ///
    /// ```
    /// let constraint = tallow::Constraint::regex(r"\d{4}-\d\d-\d\d");
    /// ```
    pub fn regex(expression: impl Into<String>) -> Self {
        Constraint::Regex(expression.into())
    }

    /// A grammar in llguidance's dialect of Lark.
    ///
    /// ```
    /// let constraint = tallow::Constraint::lark(r#"start: "the answer is " /[0-9]{1,3}/"#);
    /// ```
    pub fn lark(grammar: impl Into<String>) -> Self {
        Constraint::Lark(grammar.into())
    }

    /// One of these texts.
    ///
    /// ```
    /// let constraint = tallow::Constraint::choices(["yes", "no"]);
    /// ```
    pub fn choices<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Self {
        Constraint::Choices(texts.into_iter().map(Into::into).collect())
    }

    /// Texts that it spells out, the longest first: what may end a free text in it.
    fn literals(&self) -> Vec<Vec<u8>> {
        match self {
            Constraint::Lark(grammar) => literals::of_lark(grammar),
            Constraint::Regex(expression) => literals::of_regex(expression),
            Constraint::JsonSchema(_) | Constraint::Choices(_) => Vec::new(),
        }
    }

    /// What messages call it: the argument that a user wrote.
    pub fn name(&self) -> &'static str {
        match self {
            Constraint::JsonSchema(_) => "json_schema",
            Constraint::Regex(_) => "regex",
            Constraint::Lark(_) => "grammar",
            Constraint::Choices(_) => "choices",
        }
    }
}
