//! An input of several parts: their lengths, but the last one's, as u32, and then the parts.

/// What a part is, for the one who damages it.
#[derive(Clone, Copy)]
pub enum Part {
    Bytes,
    Gguf,
    Safetensors,
    Json,
    /// A text in a language that has these words.
    Text(&'static [&'static str]),
}

/// The parts of an input; what is not there is empty.
pub fn split(input: &[u8], count: usize) -> Vec<&[u8]> {
    let (lengths, mut rest) = input.split_at(input.len().min(4 * (count - 1)));
    let mut parts = Vec::with_capacity(count);
    for at in 0..count - 1 {
        let length = lengths.get(4 * at..4 * at + 4).and_then(|bytes| bytes.try_into().ok());
        let length = length.map_or(0, u32::from_le_bytes) as usize;
        let (part, behind) = rest.split_at(length.min(rest.len()));
        parts.push(part);
        rest = behind;
    }
    parts.push(rest);
    parts
}

/// The input of these parts.
pub fn join<T: AsRef<[u8]>>(parts: &[T]) -> Vec<u8> {
    let lengths = parts[..parts.len() - 1].iter().map(|part| part.as_ref().len() as u32);
    let mut input: Vec<u8> = lengths.flat_map(u32::to_le_bytes).collect();
    parts.iter().for_each(|part| input.extend(part.as_ref()));
    input
}
