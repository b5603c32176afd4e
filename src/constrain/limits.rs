//! What a grammar may cost. Constraints come from users and, through tools and schemas, from strangers.

use std::time::Duration;

/// Bounds on one grammar. Each is far over what real schemas need, and low enough that a hostile one ends in
/// an error within about two seconds and some hundred megabytes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a constraint as text. The largest published schemas (FHIR, 3 MB) are beyond it; those that
    /// programs make of types have kilobytes.
    pub source_bytes: usize,
    /// How deep a JSON schema nests, arrays and objects counted. Three levels of objects are about 9.
    pub depth: usize,
    /// Values in a JSON schema, keywords and their arguments.
    pub values: usize,
    /// Texts to choose from, in `choices` and in one `enum`.
    pub choices: usize,
    /// Forms that one place of a schema may take once `anyOf`, `oneOf` and `allOf` are multiplied out.
    pub alternatives: usize,
    /// `patternProperties` of one object; each two are checked to be disjoint.
    pub patterns: usize,
    /// How long the work on a grammar may take; waiting for a turn and for a processor is not counted.
    pub compile_time: Duration,
    /// Steps of work to build the automaton: some 50 a microsecond.
    pub compile_fuel: u64,
    /// Symbols in the productions of the grammar.
    pub grammar_size: usize,
    /// States of the lexer of one grammar, all its answers together: 1 to 2 kB each.
    pub lexer_states: usize,
    /// Steps of lexer work for one mask, at some 14 a microsecond.
    pub step_fuel: u64,
    /// Items of the parser for one mask, at some 20 a microsecond.
    pub step_items: usize,
    /// Grammars that a compiler remembers.
    pub cached: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            source_bytes: 1 << 20,
            depth: 64,
            values: 50_000,
            choices: 10_000,
            alternatives: 1_000,
            patterns: 32,
            compile_time: Duration::from_millis(2000),
            compile_fuel: 1_000_000,
            grammar_size: 250_000,
            lexer_states: 50_000,
            step_fuel: 200_000,
            step_items: 50_000,
            cached: 64,
        }
    }
}
