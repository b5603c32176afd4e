//! Random damage to the bytes of a file.

use super::random::Random;

/// One to four of: a bit, a byte, a number that is at a border, a piece removed, doubled, or cut off.
pub fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let borders =
        [0u64, 1, 5, 0x7f, 0xff, 1 << 16, 1 << 31, u32::MAX as u64, 1 << 40, 1 << 62, 1 << 63, u64::MAX];
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let to = at + random.below(16).min(bytes.len() - at);
        match random.below(6) {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
            1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.below(256) as u8),
            2 => {
                let border = borders[random.below(borders.len())].to_le_bytes();
                let width = [4, 8][random.below(2)];
                bytes.iter_mut().skip(at).zip(border).take(width).for_each(|(byte, new)| *byte = new);
            }
            3 => drop(bytes.drain(at..to)),
            4 => {
                let piece = bytes[at..to].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.truncate(at.max(4)),
        }
    }
}
