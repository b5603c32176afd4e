//! A network that is nothing but its memory: the logits of a row are a hash of all tokens of the sequence up
//! to it, as they are found in the pages. A wrong page, position, slot or share changes the answer, and the
//! right one can be computed from the tokens alone, with no engine.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tallow::engine::{EngineHandle, EngineOptions, Network, StepLimits, StepOutput};
use tallow::error::{Error, Result};
use tallow::step::{PAGE, Span, Step};
use tallow::text::tokenizer::Tokenizer;

pub const VOCAB: usize = 40;
pub const HIDDEN: usize = 6;

/// What a test can do to the network while it runs.
#[derive(Default)]
pub struct Control {
    /// Held by a test: the network stands still.
    pub gate: Mutex<()>,
    /// Microseconds that a step takes at least.
    pub pace_us: AtomicUsize,
    pub steps: AtomicUsize,
    pub rows: AtomicUsize,
    /// Spans that are not the whole of their sequence's tokens from the first on.
    pub cut: AtomicUsize,
    /// Nanoseconds spent in the network.
    pub spent_ns: AtomicUsize,
    /// A step that meets this token fails, panics, or answers nonsense; 0: none does.
    pub fail_on: AtomicUsize,
    pub panic_on: AtomicUsize,
    pub garble_on: AtomicUsize,
}

pub struct Fake {
    control: Arc<Control>,
    /// Token and position of each slot.
    slots: Vec<(u32, u32)>,
    vocab: usize,
}

impl Fake {
    pub fn new(pages: usize, vocab: usize, control: &Arc<Control>) -> Self {
        Fake { control: control.clone(), slots: vec![(u32::MAX, u32::MAX); pages * PAGE], vocab }
    }

    /// Hashes of all rows of a span, from what lies in its pages.
    fn hashes(&mut self, step: &Step, span: &Span) -> Vec<u64> {
        for row in span.rows.clone() {
            self.slots[span.slot(step.positions[row] as usize)] = (step.tokens[row], step.positions[row]);
        }
        let (first, end) = (step.positions[span.rows.start], step.positions[span.rows.end - 1]);
        self.control.cut.fetch_add(usize::from(first > 0), Relaxed);
        assert_eq!(span.pages.len(), tallow::step::pages_for(end as usize + 1), "pages of a span");
        let mut hash = START;
        let mut hashes = Vec::new();
        for position in 0..=end {
            let (token, written) = self.slots[span.slot(position as usize)];
            // A slot that holds another position than it should gives another hash.
            hash = mix(hash, u64::from(token) | u64::from(written ^ position) << 32);
            if position >= first {
                hashes.push(hash);
            }
        }
        hashes
    }
}

impl Network for Fake {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn hidden_size(&self) -> usize {
        HIDDEN
    }

    fn pages(&self) -> usize {
        self.slots.len() / PAGE
    }

    fn forward(&mut self, step: &Step) -> Result<StepOutput> {
        let begin = Instant::now();
        let output = self.compute(step);
        self.control.spent_ns.fetch_add(begin.elapsed().as_nanos() as usize, Relaxed);
        output
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        let from = from as usize * PAGE;
        self.slots.copy_within(from..from + PAGE, to as usize * PAGE);
        Ok(())
    }

    fn page_bytes(&self) -> usize {
        8 * PAGE
    }

    fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<()> {
        for (token, position) in &self.slots[page as usize * PAGE..][..PAGE] {
            out.extend([token.to_le_bytes(), position.to_le_bytes()].concat());
        }
        Ok(())
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<()> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        for slot in 0..PAGE {
            self.slots[page as usize * PAGE + slot] = (word(8 * slot), word(8 * slot + 4));
        }
        Ok(())
    }
}

impl Fake {
    fn compute(&mut self, step: &Step) -> Result<StepOutput> {
        drop(self.control.gate.lock());
        match self.control.pace_us.load(Relaxed) {
            0 => {}
            pace => std::thread::sleep(Duration::from_micros(pace as u64)),
        }
        self.control.steps.fetch_add(1, Relaxed);
        self.control.rows.fetch_add(step.rows(), Relaxed);
        let met = |token: &AtomicUsize| match token.load(Relaxed) {
            0 => false,
            token => step.tokens.contains(&(token as u32)),
        };
        assert!(!met(&self.control.panic_on), "the network met the token that it panics on");
        if met(&self.control.fail_on) {
            return Err(Error::out_of_memory("the network met the token that it fails on"));
        }
        if met(&self.control.garble_on) {
            return Ok(StepOutput::default());
        }
        let hashes: Vec<u64> = step.spans.iter().flat_map(|span| self.hashes(step, span)).collect();
        assert_eq!(hashes.len(), step.rows(), "spans cover all rows");
        assert!(step.logits.is_sorted() && step.hidden.is_sorted());
        let vocab = self.vocab;
        Ok(StepOutput {
            logits: step.logits.iter().flat_map(|&row| floats(hashes[row as usize], vocab)).collect(),
            hidden: step.hidden.iter().flat_map(|&row| floats(!hashes[row as usize], HIDDEN)).collect(),
        })
    }
}

const START: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(hash: u64, value: u64) -> u64 {
    let mut x = (hash ^ value).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 29;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 32)
}

fn floats(hash: u64, count: usize) -> impl Iterator<Item = f32> {
    (0..count as u64).map(move |index| (mix(hash, index + 1) >> 40) as f32 / (1 << 21) as f32 - 4.0)
}

/// What the network must say after `tokens`: `[VOCAB]`.
pub fn logits_after(tokens: &[u32]) -> Vec<f32> {
    floats(hash_of(tokens), VOCAB).collect()
}

/// The hidden state of the last of `tokens`: `[HIDDEN]`.
pub fn hidden_after(tokens: &[u32]) -> Vec<f32> {
    floats(!hash_of(tokens), HIDDEN).collect()
}

fn hash_of(tokens: &[u32]) -> u64 {
    tokens.iter().fold(START, |hash, &token| mix(hash, u64::from(token)))
}

/// An engine over a [`Fake`], small enough that prompts come in chunks and pages run out.
pub fn engine(pages: usize, change: impl FnOnce(&mut EngineOptions)) -> (EngineHandle, Arc<Control>) {
    let control = Arc::new(Control::default());
    let mut options = EngineOptions::new(200);
    options.limits = StepLimits { rows: 24, sequences: 16, logits: 10 };
    change(&mut options);
    let network = Fake::new(pages, VOCAB, &control);
    (EngineHandle::start(Box::new(network), options).unwrap(), control)
}

/// A tokenizer whose token `i` is the one character `'!' + i`.
pub fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let vocab: Vec<String> = (0..VOCAB).map(|id| format!("{:?}: {id}", character(id as u32))).collect();
        let byte_level =
            r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;
        let json = format!(
            r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":{byte_level},"post_processor":null,"decoder":{byte_level},
            "model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
            "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{{{}}},"merges":[]}}}}"#,
            vocab.join(",")
        );
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json).unwrap();
        Arc::new(Tokenizer::from_hf(folder.path()).unwrap())
    });
    TOKENIZER.get().unwrap().clone()
}

pub fn character(id: u32) -> String {
    char::from(b'!' + id as u8).to_string()
}
