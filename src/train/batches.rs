//! Which examples a step takes, in which order, and which of their tokens are free.

use std::collections::HashMap;

use super::init::order;
use super::step::Example;

/// Rows from which on some are held out, unless told otherwise by the share itself.
pub const HELD_OUT_FROM: usize = 50;

/// The examples that are trained on, and those that are only looked at, by their numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    pub train: Vec<usize>,
    pub held_out: Vec<usize>,
}

impl Split {
    /// Holds out a share of `count` examples, picked by the seed; none of fewer than [`HELD_OUT_FROM`].
    pub fn new(count: usize, share: f64, seed: u64) -> Split {
        let out = if count < HELD_OUT_FROM { 0 } else { (count as f64 * share).round() as usize };
        // A share above 0 is at least one, and one is left to train on.
        let out = if share > 0.0 && count >= HELD_OUT_FROM { out.clamp(1, count - 1) } else { 0 };
        let mut train = order(count, seed, "held out");
        let mut held_out = train.split_off(count - out);
        train.sort_unstable();
        held_out.sort_unstable();
        Split { train, held_out }
    }

    /// Steps of one pass over the examples, `batch` of them each; the last takes what is left.
    pub fn steps(&self, batch: usize) -> usize {
        self.train.len().div_ceil(batch)
    }

    /// The examples of step `step`, counted from 0 over all epochs. Each epoch has an order of its own.
    pub fn batch(&self, step: usize, batch: usize, seed: u64) -> Vec<usize> {
        let steps = self.steps(batch).max(1);
        let order = order(self.train.len(), seed, &format!("epoch {}", step / steps));
        let from = step % steps * batch;
        order.iter().skip(from).take(batch).filter_map(|at| self.train.get(*at).copied()).collect()
    }
}

/// Puts examples that begin alike side by side and cuts them into groups of at most `most` rows to compute,
/// where what neighbours share counts once. An example that is longer is a group of its own.
pub fn groups(examples: &[Example], mut chosen: Vec<usize>, most: usize) -> Vec<Vec<usize>> {
    let ids = |at: usize| examples.get(at).map_or(&[][..], |example| &example.ids);
    chosen.sort_by(|a, b| ids(*a).cmp(ids(*b)).then(a.cmp(b)));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut rows = 0;
    for at in chosen {
        let last = groups.last_mut();
        let shared =
            last.as_ref().and_then(|group| group.last()).map_or(0, |last| common(ids(*last), ids(at)));
        let more = ids(at).len() - shared;
        match last {
            Some(group) if rows + more <= most => {
                group.push(at);
                rows += more;
            }
            _ => {
                rows = ids(at).len();
                groups.push(vec![at]);
            }
        }
    }
    groups
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// For each example and each of its trained tokens whether it is free: not what every other answer that began
/// the same way goes on with. In a classifier's answers the label is free and the form around it is not.
///
/// An answer that nobody shares is free to its end, since nothing says what else it could have been.
pub fn free_tokens(examples: &[Example]) -> Vec<Vec<bool>> {
    // The answers as a tree: of a node and the next token the node behind it; of a node how many answers came
    // through, and whether they all went on alike.
    let mut children: HashMap<(usize, u32), usize> = HashMap::new();
    let mut nodes = vec![(0usize, 0usize)];
    let mut paths = Vec::with_capacity(examples.len());
    for example in examples {
        let mut path = Vec::new();
        let mut node = 0;
        for id in answer(example) {
            path.push(node);
            let fresh = nodes.len();
            let next = *children.entry((node, id)).or_insert(fresh);
            if next == fresh {
                nodes.push((0, 0));
                if let Some((_, branches)) = nodes.get_mut(node) {
                    *branches += 1;
                }
            }
            if let Some((answers, _)) = nodes.get_mut(node) {
                *answers += 1;
            }
            node = next;
        }
        paths.push(path);
    }
    let is_free =
        |node: &usize| nodes.get(*node).is_none_or(|(answers, branches)| *answers < 2 || *branches > 1);
    paths.iter().map(|path| path.iter().map(is_free).collect()).collect()
}

/// The trained tokens of an example.
fn answer(example: &Example) -> impl Iterator<Item = u32> {
    let ranges = example.targets.iter().cloned();
    ranges.flat_map(|range| example.ids.get(range).unwrap_or_default()).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init)] // an example may have one range of targets

    use super::*;

    /// "prompt|answer": each character is a token.
    fn examples(texts: &[&str]) -> Vec<Example> {
        let example = |text: &&str| {
            let (prompt, answer) = text.split_once('|').unwrap();
            let ids: Vec<u32> = prompt.chars().chain(answer.chars()).map(u32::from).collect();
            Example { targets: vec![prompt.len()..ids.len()], ids: ids.into() }
        };
        texts.iter().map(example).collect()
    }

    #[test]
    fn rows_are_held_out_from_fifty_on() {
        // rows, share, held out
        for (rows, share, out) in [
            (49, 0.1, 0),
            (50, 0.1, 5),
            (50, 0.0, 0),
            (50, 0.001, 1),
            (50, 0.999, 49),
            (240, 0.1, 24),
            (1, 0.5, 0),
        ] {
            let split = Split::new(rows, share, 3);
            assert_eq!(split.held_out.len(), out, "{rows} {share}");
            let mut all = [split.train.clone(), split.held_out.clone()].concat();
            all.sort_unstable();
            assert_eq!(all, (0..rows).collect::<Vec<_>>());
            assert_eq!(split, Split::new(rows, share, 3));
        }
        assert_ne!(Split::new(60, 0.1, 3), Split::new(60, 0.1, 4));
    }

    #[test]
    fn an_epoch_takes_each_row_once() {
        let split = Split::new(55, 0.1, 3);
        assert_eq!((split.train.len(), split.steps(8)), (49, 7));
        let epoch = |number: usize| -> Vec<usize> {
            (number * 7..number * 7 + 7).flat_map(|step| split.batch(step, 8, 3)).collect()
        };
        for number in 0..3 {
            let mut rows = epoch(number);
            rows.sort_unstable();
            assert_eq!(rows, split.train, "epoch {number}");
        }
        assert_ne!(epoch(0), epoch(1));
        assert_eq!(split.batch(6, 8, 3).len(), 1, "the last step of an epoch takes what is left");
    }

    #[test]
    fn rows_that_begin_alike_are_computed_together() {
        let examples = examples(&["system b|y", "other text|x", "system a|x", "system c|z"]);
        // most, groups: the shared "system " counts once.
        for (most, wanted) in [
            (100, vec![vec![1, 2, 0, 3]]),
            (13, vec![vec![1], vec![2, 0, 3]]),
            (11, vec![vec![1], vec![2, 0], vec![3]]),
            (1, vec![vec![1], vec![2], vec![0], vec![3]]),
        ] {
            assert_eq!(groups(&examples, vec![0, 1, 2, 3], most), wanted, "{most}");
        }
    }

    #[test]
    fn the_label_is_free_and_its_form_is_not() {
        let found = |texts: &[&str]| -> Vec<String> {
            let mark = |free: &Vec<bool>| free.iter().map(|free| if *free { 'f' } else { '.' }).collect();
            free_tokens(&examples(texts)).iter().map(mark).collect()
        };
        // The prompt does not matter, only the answers do.
        assert_eq!(found(&["p|K1.", "q|K2.", "r|K1.", "s|K2."]), [".f.", ".f.", ".f.", ".f."]);
        // Whoever is alone behind the label is free to the end.
        assert_eq!(found(&["p|K1.", "q|K2."]), [".ff", ".ff"]);
        assert_eq!(found(&["p|ab"]), ["ff"]);
        assert_eq!(found(&["p|ab", "q|ab"]), ["..", ".."]);
        assert_eq!(found(&[]), Vec::<String>::new());
    }
}
