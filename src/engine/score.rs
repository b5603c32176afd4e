//! The work of `Score`: the prompt is computed once, and every candidate forks from its pages.
//!
//! ```text
//! prompt      | page 3 | page 7 | page 1 .. |      the last page is half full
//! candidate   | page 3 | page 7 | page 4 ........ | page 9 ..
//!               shared   shared   copied from 1     its own
//! ```
//! The row of a token tells the next one's log probability, so the first token of each candidate is
//! known from the prompt's last row and the last token of each is never computed. Candidates fork as room
//! for their own pages is there: all at once if they are few, in waves if they are many.

use super::lane::{Lane, Want};
use super::network::Network;
use super::request::fork_pages;
use crate::cache::pages::Lease;
use crate::cache::prefix::PrefixCache;
use crate::error::{Error, Result};
use crate::sample::log_softmax_at;
use crate::step::PAGE;

pub(super) struct Score {
    candidates: Vec<Vec<u32>>,
    /// Per candidate, the log probabilities known so far.
    scores: Vec<Vec<f32>>,
    /// Pages for what candidates have of their own.
    pub room: Lease,
    /// The prompt's pages, once it is computed.
    pub prompt: Lease,
    prompt_len: usize,
    /// Candidates before this one have forked.
    next: usize,
    computed: bool,
}

impl Score {
    pub fn new(candidates: Vec<Vec<u32>>, prompt_len: usize) -> Self {
        let scores = candidates.iter().map(|ids| Vec::with_capacity(ids.len())).collect();
        let (room, prompt) = (Lease::default(), Lease::default());
        Score { candidates, scores, room, prompt, prompt_len, next: 0, computed: false }
    }

    /// The prompt's last row: the first token of every candidate.
    pub fn begin(&mut self, prompt: Lease, raw: &[f32]) -> Result<()> {
        self.prompt = prompt;
        self.computed = true;
        for (ids, scores) in self.candidates.iter().zip(&mut self.scores) {
            if let Some(&id) = ids.first() {
                scores.push(log_softmax_at(raw, id)?);
            }
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

    /// Takes back the pages of lanes that are done, forks as many more as there is room for, and returns
    /// the scores when none is left.
    pub fn tend(
        &mut self,
        lanes: &mut Vec<Lane>,
        most: usize,
        cache: &mut PrefixCache,
        network: &mut dyn Network,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        if !self.computed {
            return Ok(None);
        }
        for lane in lanes.extract_if(.., |lane| lane.gap().tokens == 0) {
            self.retire(lane, cache);
        }
        while self.next < self.candidates.len() && lanes.len() < most {
            let own = fork_pages(self.prompt_len, self.candidates[self.next].len());
            if own > self.room.len() {
                break;
            }
            if let Some(lane) = self.fork(own, cache, network)? {
                lanes.push(lane);
            }
            self.next += 1;
        }
        if !lanes.is_empty() {
            return Ok(None);
        }
        if self.next < self.candidates.len() {
            return Err(Error::internal("no room was reserved for a candidate"));
        }
        Ok(Some(std::mem::take(&mut self.scores)))
    }

    /// A lane for the next candidate; none if it needs no row of its own.
    fn fork(
        &mut self,
        own: usize,
        cache: &mut PrefixCache,
        network: &mut dyn Network,
    ) -> Result<Option<Lane>> {
        let Some((_, fed)) = self.candidates[self.next].split_last().filter(|(_, fed)| !fed.is_empty())
        else {
            return Ok(None);
        };
        let full = self.prompt_len / PAGE;
        let own = self.room.split_last(own);
        if let (Some(&from), Some(&to)) = (self.prompt.pages().get(full), own.pages().first())
            && let Err(error) = network.copy_page(from, to)
        {
            self.room.append(own);
            return Err(error);
        }
        let mut lease = cache.share(&self.prompt, full);
        lease.append(own);
        Ok(Some(Lane::new(self.prompt_len, fed.to_vec(), lease, Want::Every, self.next)))
    }

    /// `[0, full)` of a lane's pages are shared and released, `[full, ..)` are its own and go back to the room.
    fn retire(&mut self, mut lane: Lane, cache: &mut PrefixCache) {
        let own = lane.lease.len().saturating_sub(self.prompt_len / PAGE);
        self.room.append(lane.lease.split_last(own));
        cache.release(lane.lease);
    }

    /// Tokens of all candidates.
    pub fn tokens(&self) -> usize {
        self.candidates.iter().map(Vec::len).sum()
    }
}
