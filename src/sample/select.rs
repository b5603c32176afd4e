//! Selection: the k-th best, and the smallest best set of a given mass, without sorting the vocabulary.

use super::logits::Work;
use super::softmax;

/// Where a selection ends: what is over `threshold` stays, and the first `ties` of what is right at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    pub threshold: f32,
    pub ties: usize,
}

/// The `k` largest of `values` (none NaN); fewer if fewer are over `-inf`. Linear in `values`.
///
/// A buffer collects what beats the k-th best so far, and is cut back to `k` when it is full. On a large
/// vocabulary nearly every block of 32 holds no such value and costs one vectorized comparison.
pub fn largest(values: &[f32], k: usize, buffer: &mut Vec<f32>) -> Cut {
    let mut floor = f32::NEG_INFINITY;
    let full = k.saturating_mul(2).max(256);
    buffer.clear();
    for block in values.chunks(32) {
        if !block.iter().fold(false, |any, &value| any | (value > floor)) {
            continue;
        }
        buffer.extend(block.iter().filter(|&&value| value > floor));
        if buffer.len() >= full {
            floor = shrink(buffer, k);
        }
    }
    if buffer.len() < k {
        return Cut { threshold: f32::NEG_INFINITY, ties: 0 };
    }
    let threshold = shrink(buffer, k);
    // All values over the threshold are still in the buffer, only equals of it may have been dropped.
    let over = buffer.iter().filter(|&&value| value > threshold).count();
    Cut { threshold, ties: k - over }
}

/// Cuts `buffer` (at least `k` values) to its `k` largest and returns the smallest of those.
fn shrink(buffer: &mut Vec<f32>, k: usize) -> f32 {
    let (_, &mut kth, _) = buffer.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    buffer.truncate(k);
    kth
}

/// The smallest set of the best keys whose weights reach `target`; equal keys count by lowest index.
///
/// `work.weights` has the weight of each candidate, `work.keys` its key (or is empty: the weights are the
/// keys). A key of `-inf` is outside.
///
/// Bisection brackets the key at which the target is crossed, by vectorized passes that only add and count;
/// quickselect then finds the place among the items in the bracket. (A histogram over the leading bits of
/// the keys took a fifth longer on rows of the usual shape.) Linear also when all keys are equal.
pub fn smallest_set(work: &mut Work, target: f64) -> Cut {
    let Work { weights, keys, items, .. } = work;
    let keys: &[f32] = if keys.is_empty() { weights } else { keys };
    let bracket = bracket(keys, weights, target);
    collect(keys, &bracket, items);
    let weight = |item: u64| f64::from(weights[(item & INDEX) as usize]);
    let Some(last) = cross(items, bracket.mass_over, target, weight) else {
        return Cut { threshold: f32::MIN, ties: usize::MAX };
    };
    let ties = items.iter().filter(|&&item| item >> 32 == last >> 32 && item <= last).count();
    Cut { threshold: keys[(last & INDEX) as usize], ties }
}

/// Keys in `low..high` (`high` is out): the target is crossed at one of them.
struct Bracket {
    low: f32,
    high: f32,
    /// The weights of all keys at `high` and over it. Under the target.
    mass_over: f64,
}

/// Halves the bracket, in the order of the keys' bits, until few items are in it or halving stops paying.
fn bracket(keys: &[f32], weights: &[f32], target: f64) -> Bracket {
    const FEW: usize = 1024;
    const PASSES: usize = 10;
    let best = keys.iter().fold(f32::MIN, |best, &key| if key > best { key } else { best });
    // One rank under the worst finite key, one over the best.
    let (mut low, mut high) = (rank(f32::MIN), rank(best).saturating_sub(1));
    let (mut mass_over, mut count_over, mut count) = (0.0, 0, keys.len());
    // The first probe is where it mostly ends for the weights of a language model: 1/64 of the best.
    let mut probe = rank(best).saturating_add(6 << 23);
    for _ in 0..PASSES {
        if count - count_over <= FEW || low - high < 2 {
            break;
        }
        let middle = if probe > high && probe < low { probe } else { high + (low - high) / 2 };
        let (mass, inside) = softmax::sum_over(keys, weights, unrank(middle));
        if mass >= target {
            (low, count) = (middle, inside);
            probe = 0;
        } else {
            (high, mass_over, count_over) = (middle, mass, inside);
            probe = middle.saturating_add(4 << 23);
        }
    }
    Bracket { low: unrank(low), high: unrank(high), mass_over }
}

/// The index half of an item. The other half ranks the key, so items sort best first, then by index.
const INDEX: u64 = 0xffff_ffff;

/// One item a key in the bracket.
fn collect(keys: &[f32], bracket: &Bracket, items: &mut Vec<u64>) {
    let within = |key: f32| (key >= bracket.low) & (key < bracket.high);
    items.clear();
    for (block_index, block) in keys.chunks(32).enumerate() {
        if !block.iter().fold(false, |any, &key| any | within(key)) {
            continue;
        }
        for (offset, &key) in block.iter().enumerate() {
            if within(key) {
                items.push(u64::from(rank(key)) << 32 | (block_index * 32 + offset) as u64);
            }
        }
    }
}

/// Larger keys have smaller ranks.
fn rank(key: f32) -> u32 {
    let bits = key.to_bits();
    if bits >> 31 == 1 { bits } else { 0x7fff_ffff - bits }
}

/// The key of a rank.
fn unrank(rank: u32) -> f32 {
    f32::from_bits(if rank >> 31 == 1 { rank } else { 0x7fff_ffff - rank })
}

/// The first item, in sorted order, at which `mass` and the weights up to it reach `target`; the last one if
/// rounding leaves the whole a hair under it.
fn cross(items: &mut [u64], mut mass: f64, target: f64, weight: impl Fn(u64) -> f64) -> Option<u64> {
    let mut rest = items;
    while rest.len() > 32 {
        let middle = rest.len() / 2;
        rest.select_nth_unstable(middle);
        let (left, right) = rest.split_at_mut(middle);
        let left_mass: f64 = left.iter().map(|&item| weight(item)).sum();
        if mass + left_mass >= target {
            rest = left;
        } else {
            mass += left_mass;
            rest = right;
        }
    }
    rest.sort_unstable();
    let crossed = rest.iter().position(|&item| {
        mass += weight(item);
        mass >= target
    });
    crossed.and_then(|index| rest.get(index)).or(rest.last()).copied()
}
