//! A network that is nothing but its memory: the logits of a row are a hash of all tokens of the sequence up
//! to it, as they are found in the pages of its first group. Other groups see a window of them, and recurrent
//! state is the hash itself: where they do not agree with the first group the answer changes. So does it with
//! a wrong page, position, slot or share, and the right one can be computed from the tokens alone, with no
//! engine.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tallow::cache::layout::StateLayout;
use tallow::engine::{DraftRunner, EngineHandle, EngineOptions, ModelRunner, StepLimits, StepOutput};
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
    /// Microseconds that a step takes at least, and by the network's own clock, which counts one for each row
    /// as well. So what depends on the pace does not depend on how busy the machine is.
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
    /// Rows whose position is a multiple of this say something else than they should; 0: none do.
    pub wrong_every: AtomicUsize,
}

pub struct Fake {
    control: Arc<Control>,
    layout: StateLayout,
    /// Token, position and group of each position of each page.
    cells: Vec<Cell>,
    /// The hash in each slot of recurrent state, and the positions that are in it.
    states: Vec<(u64, u32)>,
    vocab: usize,
    took: Option<Duration>,
}

type Cell = (u32, u32, u32);

impl Fake {
    pub fn new(pages: usize, vocab: usize, control: &Arc<Control>) -> Self {
        Self::of(StateLayout::plain(pages), vocab, control)
    }

    /// The first group must be without a window.
    pub fn of(layout: StateLayout, vocab: usize, control: &Arc<Control>) -> Self {
        let cells = vec![(u32::MAX, u32::MAX, u32::MAX); layout.pages * PAGE];
        let states = vec![(0, u32::MAX); layout.slots];
        Fake { control: control.clone(), layout, cells, states, vocab, took: None }
    }

    /// Hashes of all rows of a span, from what lies in its pages and its state.
    fn hashes(&mut self, step: &Step, span: &Span) -> Vec<u64> {
        assert_eq!(span.pages.len(), self.layout.paged.len(), "page tables of a span");
        for (row, group) in span.rows.clone().flat_map(|row| (0..span.pages.len()).map(move |g| (row, g))) {
            let cell = (step.tokens[row], step.positions[row], group as u32);
            self.cells[span.slot(group, step.positions[row] as usize)] = cell;
        }
        let (first, end) = (step.positions[span.rows.start], step.positions[span.rows.end - 1]);
        self.control.cut.fetch_add(usize::from(first > 0), Relaxed);
        for table in &span.pages {
            assert_eq!(table.len(), tallow::step::pages_for(end as usize + 1), "pages of a span");
        }
        let mut hash = START;
        let mut hashes = Vec::new();
        for position in 0..=end {
            let (token, written, group) = self.cells[span.slot(0, position as usize)];
            // A cell that holds another position or group than it should gives another hash.
            hash = mix(hash, u64::from(token) | u64::from(written ^ position | group) << 32);
            if position >= first {
                hashes.push(if self.windows_agree(span, position) { hash } else { !hash });
            }
        }
        self.go_on(step, span, &mut hashes);
        hashes
    }

    /// Whether the other groups have, within their windows, what the first one has.
    fn windows_agree(&self, span: &Span, position: u32) -> bool {
        self.layout.paged.iter().enumerate().skip(1).all(|(group, it)| {
            let window = it.window.unwrap_or(usize::MAX);
            let from = (position as usize + 1).saturating_sub(window);
            (from..=position as usize).all(|at| {
                let (token, written, of) = self.cells[span.slot(group, at)];
                (token, written, 0) == self.cells[span.slot(0, at)] && of == group as u32
            })
        })
    }

    /// Goes on from the state before the span; hashes that do not agree with it are turned round.
    fn go_on(&mut self, step: &Step, span: &Span, hashes: &mut [u64]) {
        if self.layout.slots == 0 {
            return;
        }
        let first = step.positions[span.rows.start];
        let (mut state, positions) = span.state.read.map_or((START, 0), |slot| self.states[slot as usize]);
        let mut states = Vec::new();
        for (row, hash) in span.rows.clone().zip(hashes) {
            state = mix(state, u64::from(step.tokens[row]));
            if positions != first || state != *hash {
                *hash = !*hash;
            }
            states.push((state, step.positions[row] + 1));
        }
        assert!(span.state.writes.is_sorted_by_key(|write| write.rows), "states are written in order");
        assert!(span.state.writes.iter().any(|write| write.rows > 0), "no state was written");
        for write in &span.state.writes {
            self.states[write.slot as usize] = states[write.rows - 1];
        }
    }
}

impl ModelRunner for Fake {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn hidden_size(&self) -> usize {
        HIDDEN
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&mut self, step: &Step) -> Result<StepOutput> {
        let begin = Instant::now();
        let output = self.compute(step);
        self.control.spent_ns.fetch_add(begin.elapsed().as_nanos() as usize, Relaxed);
        let pace = self.control.pace_us.load(Relaxed);
        self.took = (pace > 0).then(|| Duration::from_micros((pace + step.rows()) as u64));
        output
    }

    fn step_time(&self) -> Option<Duration> {
        self.took
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        let from = from as usize * PAGE;
        self.cells.copy_within(from..from + PAGE, to as usize * PAGE);
        Ok(())
    }

    fn page_bytes(&self, _group: usize) -> usize {
        12 * PAGE
    }

    fn read_page(&self, _group: usize, page: u32, out: &mut Vec<u8>) -> Result<()> {
        for (token, position, group) in &self.cells[page as usize * PAGE..][..PAGE] {
            out.extend([token.to_le_bytes(), position.to_le_bytes(), group.to_le_bytes()].concat());
        }
        Ok(())
    }

    fn write_page(&mut self, _group: usize, page: u32, bytes: &[u8]) -> Result<()> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        for slot in 0..PAGE {
            let cell = (word(12 * slot), word(12 * slot + 4), word(12 * slot + 8));
            self.cells[page as usize * PAGE + slot] = cell;
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        if self.layout.slots > 0 { 12 } else { 0 }
    }

    fn read_state(&self, slot: u32, out: &mut Vec<u8>) -> Result<()> {
        let (hash, positions) = self.states[slot as usize];
        out.extend([&hash.to_le_bytes()[..], &positions.to_le_bytes()].concat());
        Ok(())
    }

    fn write_state(&mut self, slot: u32, bytes: &[u8]) -> Result<()> {
        let (hash, positions) = bytes.split_at(8);
        self.states[slot as usize] =
            (u64::from_le_bytes(hash.try_into().unwrap()), u32::from_le_bytes(positions.try_into().unwrap()));
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
        let mut hashes: Vec<u64> = step.spans.iter().flat_map(|span| self.hashes(step, span)).collect();
        let wrong = self.control.wrong_every.load(Relaxed) as u32;
        for (hash, position) in hashes.iter_mut().zip(&step.positions) {
            if wrong > 0 && position % wrong == 0 {
                *hash = !*hash;
            }
        }
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
    engine_of(StateLayout::plain(pages), change)
}

/// The same, with other groups of state.
pub fn engine_of(
    layout: StateLayout,
    change: impl FnOnce(&mut EngineOptions),
) -> (EngineHandle, Arc<Control>) {
    engine_with(layout, None, change)
}

/// The same, with a model that drafts.
pub fn engine_with(
    layout: StateLayout,
    draft: Option<DraftRunner>,
    change: impl FnOnce(&mut EngineOptions),
) -> (EngineHandle, Arc<Control>) {
    let control = Arc::new(Control::default());
    let mut options = EngineOptions::new(200);
    options.limits = StepLimits { rows: 24, sequences: 16, logits: 10 };
    change(&mut options);
    let network = Fake::of(layout, VOCAB, &control);
    (EngineHandle::start_with(Box::new(network), draft, options).unwrap(), control)
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
