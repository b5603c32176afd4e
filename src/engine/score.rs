//! The work of `Score`: the prompt is computed once, and every candidate forks from its pages.
//!
//! ```text
//! prompt      | page 3 | page 7 | page 1 .. |      the last page is half full
//! candidate   | page 3 | page 7 | page 4 ........ | page 9 ..
//!               shared   shared   copied from 1     its own
//! ```
//! The row of a token tells the next one's log probability, so the first token of each candidate is known
//! from the prompt's last row and the last token of each is never computed. What all candidates begin with is
//! computed with the prompt, for it costs no step of its own there. (Deeper branches are not shared: a step
//! more costs about as much as eight rows.) Candidates fork as room for their own pages is there: all at once
//! if they are few, in waves if they are many.

use super::branch::{Branch, Recurrent, Want};
use super::model_runner::ModelRunner;
use super::request::fork_pages;
use crate::cache::holding::Holding;
use crate::cache::pages::Lease;
use crate::cache::prefix::{PrefixCache, Slot};
use crate::error::{Error, Result};
use crate::lora::AdapterLease;
use crate::sample::log_softmax_at;
use crate::step::PAGE;

pub(super) struct Score {
    /// What all of them begin with, and its log probabilities as far as known.
    beginning: Vec<u32>,
    told: Vec<f32>,
    /// What follows it in each.
    candidates: Vec<Vec<u32>>,
    /// Per candidate, the log probabilities known so far.
    scores: Vec<Vec<f32>>,
    /// Pages for what candidates have of their own.
    pub room: Lease,
    /// A slot for what a candidate has of its own, where the model has recurrent state: one at a time can
    /// always be scored.
    pub spare: Option<Slot>,
    /// The prompt's pages, and the state after it, once it is computed.
    pub prompt: Holding,
    state: Option<Slot>,
    adapter: Option<AdapterLease>,
    /// With the common beginning.
    prompt_len: usize,
    /// Candidates before this one have forked.
    next: usize,
    computed: bool,
}

impl Score {
    pub fn new(candidates: Vec<Vec<u32>>, beginning: Vec<u32>, prompt_len: usize) -> Self {
        let scores = Vec::with_capacity(candidates.len());
        Score {
            beginning,
            told: Vec::new(),
            candidates,
            scores,
            room: Lease::default(),
            spare: None,
            prompt: Holding::default(),
            state: None,
            adapter: None,
            prompt_len,
            next: 0,
            computed: false,
        }
    }

    /// Keeps what the branch of the prompt holds, which is computed.
    pub fn take_prompt(&mut self, branch: &mut Branch, cache: &mut PrefixCache) {
        self.prompt = std::mem::take(&mut branch.holding);
        self.state = branch.state.take_own();
        self.adapter = branch.adapter().cloned();
        branch.release(cache);
    }

    /// The slots that it holds beside those of its branches.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.spare.iter().chain(&self.state)
    }

    /// Gives everything back.
    pub fn release(&mut self, cache: &mut PrefixCache) {
        cache.release_holding(std::mem::take(&mut self.prompt));
        cache.release(std::mem::take(&mut self.room));
        self.spare.take().into_iter().chain(self.state.take()).for_each(|slot| cache.release_slot(slot));
    }

    /// Rows from the prompt's own last one on: they tell the common beginning, and the last of them the first
    /// token after it of every candidate.
    pub fn absorb_prompt(&mut self, rows: &[f32], vocab: usize) -> Result<()> {
        for row in rows.chunks_exact(vocab) {
            if let Some(&id) = self.beginning.get(self.told.len()) {
                self.told.push(log_softmax_at(row, id)?);
                continue;
            }
            for ids in &self.candidates {
                let first = ids.first().map(|&id| log_softmax_at(row, id)).transpose()?;
                self.scores.push(first.into_iter().collect());
            }
            self.computed = true;
        }
        Ok(())
    }

    /// Rows of a candidate, each telling the token after it.
    pub fn absorb(&mut self, part: usize, rows: &[f32], vocab: usize) -> Result<()> {
        let (ids, scores) = (&self.candidates[part], &mut self.scores[part]);
        for row in rows.chunks_exact(vocab) {
            scores.push(log_softmax_at(row, ids[scores.len()])?);
        }
        Ok(())
    }

    /// Takes back the pages of branches that are done, forks as many more as there is room for, and returns
    /// the scores when none is left.
    pub fn advance_forks(
        &mut self,
        branches: &mut Vec<Branch>,
        most: usize,
        cache: &mut PrefixCache,
        runner: &mut dyn ModelRunner,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        if !self.computed {
            return Ok(None);
        }
        for branch in branches.extract_if(.., |branch| branch.backlog().tokens == 0) {
            self.retire(branch, cache);
        }
        while self.next < self.candidates.len() && branches.len() < most {
            let own = fork_pages(self.prompt_len, self.candidates[self.next].len());
            if own * cache.groups().len() > self.room.len() || !self.provide_slot(cache) {
                break;
            }
            if let Some(branch) = self.fork(own, cache, runner)? {
                branches.push(branch);
            }
            self.next += 1;
        }
        if !branches.is_empty() {
            return Ok(None);
        }
        if self.next < self.candidates.len() {
            return Err(Error::internal("no room was reserved for a candidate"));
        }
        let whole = |own: &Vec<f32>| [&self.told[..], own].concat();
        Ok(Some(self.scores.iter().map(whole).collect()))
    }

    /// Sees to a slot for the next candidate, where it needs one; false: others have to end first.
    fn provide_slot(&mut self, cache: &mut PrefixCache) -> bool {
        if cache.has_state() && self.spare.is_none() {
            self.spare = cache.lease_slot();
        }
        !cache.has_state() || self.spare.is_some()
    }

    /// A branch for the next candidate; none if it needs no row of its own.
    fn fork(
        &mut self,
        own: usize,
        cache: &mut PrefixCache,
        runner: &mut dyn ModelRunner,
    ) -> Result<Option<Branch>> {
        let Some((_, fed)) = self.candidates[self.next].split_last().filter(|(_, fed)| !fed.is_empty())
        else {
            return Ok(None);
        };
        let full = self.prompt_len / PAGE;
        let mut holding = cache.share_holding(&self.prompt, full);
        let mut outcome = Ok(());
        for group in 0..cache.groups().len() {
            let own = self.room.split_last(own);
            if let (Some(from), Some(&to)) = (self.prompt.page(group, full), own.pages().first())
                && outcome.is_ok()
            {
                outcome = runner.copy_page(from, to);
            }
            holding.append(group, own);
        }
        let (fed, state) = (fed.to_vec(), self.state.as_ref().map(|state| cache.share_slot(state)));
        let adapter = self.adapter.clone();
        let mut branch = Branch::new(self.prompt_len, fed, holding, Want::Every, self.next, adapter);
        branch.state = Recurrent::of_fork(state, self.spare.take());
        match outcome {
            Ok(()) => Ok(Some(branch)),
            Err(error) => {
                self.retire(branch, cache);
                Err(error)
            }
        }
    }

    /// `[0, full)` of a branch's pages are shared and released, `[full, ..)` are its own and go back to the
    /// room.
    fn retire(&mut self, mut branch: Branch, cache: &mut PrefixCache) {
        for group in 0..cache.groups().len() {
            self.room.append(branch.holding.split_from(group, self.prompt_len / PAGE));
        }
        if self.spare.is_none() {
            self.spare = branch.state.take_own();
        }
        branch.release(cache);
    }

    /// Tokens of all candidates.
    pub fn tokens(&self) -> usize {
        self.candidates.iter().map(|ids| self.beginning.len() + ids.len()).sum()
    }
}
