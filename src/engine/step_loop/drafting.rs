//! Drafts of a step: from each sequence's own text, or from a draft model, whichever is expected to save
//! more.
//!
//! The draft model drafts for several sequences at once, one token deeper with each step of its own. Each
//! token is drawn from its logits as the sequence would draw it from the model's: with the same sampler, the
//! same grammar and the same random number. So it is right more often than the likeliest one would be.

use std::time::Instant;

use super::super::draft::{Depth, Drafting, MODEL, Seat};
use super::super::draft_model::CHUNK;
use super::super::guide::Foresight;
use super::{Engine, Scheduled};
use crate::sample::Logits;
use crate::trace;

/// Tokens that a draft model computes for a sequence in the usual course: the last drafted one, and the next.
const USUAL: usize = 8;

/// A sequence of the step.
struct Candidate {
    /// Its place among the running ones.
    sequence: usize,
    /// Tokens that a draft may have, and those that the answer may have.
    room: usize,
    left: usize,
}

/// A sequence that the draft model drafts for.
struct ModelDraft {
    id: u64,
    candidate: Candidate,
    grammar: Option<Foresight>,
    /// Rows to compute next, and whether the last of them tells what may come.
    rows: usize,
    closes: bool,
}

impl Engine {
    /// Drafts for the answers of a step in which there is nothing else.
    pub(super) fn draft(&mut self, chosen: &[((usize, usize), usize)]) -> Option<Drafting> {
        let drafter = self.drafter.as_ref()?;
        let rows = chosen.iter().map(|(_, rows)| rows).sum();
        let mut step = drafter.begin(rows, chosen.len())?;
        let cache = &mut self.cache;
        let candidates = chosen.iter().map(|&((sequence, _), _)| {
            let (room, left) = self.running[sequence].room_for_draft(cache);
            Candidate { sequence, room, left }
        });
        let candidates: Vec<_> = candidates.filter(|candidate| candidate.room > 0).collect();
        for Candidate { sequence, room, .. } in self.draft_by_model(&mut step, candidates) {
            let it = &mut self.running[sequence];
            let Some(drafter) = &self.drafter else { continue };
            if let Some(offer) = it.draft_from_text(drafter, &step, room) {
                self.stats.drafted += it.take_draft(step.take(offer), &mut self.cache) as u64;
            }
        }
        Some(step)
    }

    /// Has the draft model draft for those of `candidates` for which that is the better way; returns the
    /// others.
    fn draft_by_model(&mut self, step: &mut Drafting, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let Some(depth) = self.depth(step, &candidates) else { return candidates };
        let _span = trace::span("draft");
        let (drafts, others) = self.seat(step, &depth, candidates);
        let drafts = self.draft_deeper(step, depth.tokens, drafts);
        let (Some(drafter), Some(model)) = (&self.drafter, &self.draft_model) else { return others };
        for ModelDraft { id, candidate, .. } in drafts {
            let mut drafted = model.drafted(id).to_vec();
            drafted.truncate(candidate.room);
            if let Some(draft) = drafter.enter(step, drafted) {
                let drafted = self.running[candidate.sequence].take_draft(draft, &mut self.cache) as u64;
                self.stats.drafted += drafted;
                self.stats.model_drafted += drafted;
            }
        }
        others
    }

    /// How far the draft model is to draft, if at all.
    fn depth(&self, step: &Drafting, candidates: &[Candidate]) -> Option<Depth> {
        let (drafter, model) = (self.drafter.as_ref()?, self.draft_model.as_ref()?);
        let seat = |candidate: &Candidate| {
            let it = &self.running[candidate.sequence];
            let fits = model.fits(it.branches[0].len());
            let right = drafter.right(MODEL, it.record().filter(|_| fits)?);
            Some(Seat { right, room: candidate.room })
        };
        let seats: Vec<_> = candidates.iter().filter_map(seat).collect();
        drafter.depth(step, &seats).filter(|depth| depth.tokens > 0)
    }

    /// Those of `candidates` that the draft model is to draft for, as far as it can and it pays to have it
    /// compute what it has not seen; and the others.
    fn seat(
        &mut self,
        step: &Drafting,
        depth: &Depth,
        candidates: Vec<Candidate>,
    ) -> (Vec<ModelDraft>, Vec<Candidate>) {
        let (mut drafts, mut others) = (Vec::<ModelDraft>::new(), Vec::new());
        let (mut budget, mut needed) = (CHUNK, Vec::new());
        let gain = depth.gain_of_one(candidates.len());
        for candidate in candidates {
            let (Some(drafter), Some(model)) = (&self.drafter, &mut self.draft_model) else { break };
            let it = &mut self.running[candidate.sequence];
            let mut seat = || {
                let text = it.draft_from_text(drafter, step, candidate.room);
                if text.is_some_and(|offer| offer.gain >= gain) || !model.fits(it.branches[0].len()) {
                    return None;
                }
                let grammar = it.foresee()?;
                let behind = model.follow(it.id, &it.branches[0].tokens)?;
                let (count, left) = (it.usage.completion_tokens, candidate.left);
                if behind > USUAL && !drafter.pays_to_catch_up(depth, behind, count, left) {
                    return None;
                }
                let rows = behind.min(budget);
                (rows > 0 && model.provide(it.id, &needed)).then_some((grammar, rows, rows == behind))
            };
            match seat() {
                Some((grammar, rows, closes)) => {
                    budget -= rows;
                    needed.push(it.id);
                    drafts.push(ModelDraft { id: it.id, candidate, grammar, rows, closes });
                }
                None => others.push(candidate),
            }
        }
        (drafts, others)
    }

    /// Drafts up to `depth` tokens for each of `drafts`, a token for all of them with each step of the draft
    /// model; returns those for which there is a draft.
    fn draft_deeper(
        &mut self,
        step: &mut Drafting,
        depth: usize,
        mut drafts: Vec<ModelDraft>,
    ) -> Vec<ModelDraft> {
        let (Some(drafter), Some(model)) = (&mut self.drafter, &mut self.draft_model) else { return drafts };
        let needed: Vec<u64> = drafts.iter().map(|draft| draft.id).collect();
        for _ in 0..depth {
            let rows: Vec<_> =
                drafts.iter().filter(|draft| draft.rows > 0).map(|it| (it.id, it.rows)).collect();
            if rows.is_empty() {
                break;
            }
            let begin = Instant::now();
            let Ok(output) = model.forward(&rows) else {
                // Nothing is known of what it has computed. The account has it tried again, or not.
                model.retain(|_| false);
                drafts.clear();
                break;
            };
            let mut at = 0;
            for draft in drafts.iter_mut().filter(|draft| draft.rows > 0) {
                if !std::mem::take(&mut draft.closes) {
                    draft.rows = 0;
                    continue;
                }
                model.load(&output, at);
                at += 1;
                let it = &self.running[draft.candidate.sequence];
                let (tokens, row) = (model.tokens(draft.id), model.row());
                let propose = |scratch: &mut Logits| it.propose(draft.grammar.as_mut(), tokens, row, scratch);
                let proposed = self.scratch.lend(propose).unwrap_or_default();
                let room = draft.candidate.room > model.drafted(draft.id).len() + proposed.len();
                model.append(draft.id, &proposed);
                let fits = room && model.fits(model.tokens(draft.id).len());
                let goes_on = fits && !proposed.is_empty() && model.provide(draft.id, &needed);
                (draft.rows, draft.closes) = (if goes_on { proposed.len() } else { 0 }, goes_on);
            }
            let took = model.runner().step_time().unwrap_or_else(|| begin.elapsed());
            model.runner().recycle(output);
            drafter.note_model(step, rows.iter().map(|(_, rows)| rows).sum(), took);
            self.stats.draft_steps += 1;
            self.stats.drafting += took;
        }
        drafts
    }

    /// What came of the drafts.
    pub(super) fn record_acceptance(&mut self, scheduled: &[Scheduled], drafting: Option<Drafting>) {
        let (Some(drafter), Some(drafting)) = (&mut self.drafter, drafting) else { return };
        for scheduled in scheduled {
            let came = self.running[scheduled.sequence].record_acceptance(drafter, drafting.worth());
            let Some((source, accepted)) = came else { continue };
            self.stats.accepted += accepted as u64;
            if source == MODEL {
                self.stats.model_accepted += accepted as u64;
            }
        }
    }
}
