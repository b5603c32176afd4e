//! A computed prefix as bytes, and back into the prefix tree.
//!
//! ```text
//! group 0: page, page, ..  | group 1: page, ..  | ..  | state after the last page
//! ```
//! Of each group those pages that a request going on from the end of the prefix sees: all of them, or the
//! last ones where the group has a window.

use super::model_runner::ModelRunner;
use crate::cache::holding::Holding;
use crate::cache::layout::StateLayout;
use crate::cache::prefix::{Chunk, Place, PrefixCache, Slot};
use crate::cache::prefix_file::Prefix;
use crate::error::{Error, Result};
use crate::step::PAGE;

/// The first page of each group that is saved of a prefix of `pages` pages.
fn first_pages(layout: &StateLayout, pages: usize) -> Vec<usize> {
    layout.paged.iter().map(|group| group.first_needed(pages * PAGE)).collect()
}

/// Bytes of a saved prefix of `pages` pages.
fn prefix_bytes(runner: &dyn ModelRunner, pages: usize) -> usize {
    let first = first_pages(runner.layout(), pages);
    let of = |(group, first): (usize, usize)| runner.page_bytes(group).saturating_mul(pages - first);
    let paged = first.into_iter().enumerate().map(of).fold(0, usize::saturating_add);
    paged.saturating_add(runner.state_bytes())
}

/// What lies in the first `pages` pages of a sequence, and `state` after them.
///
/// # Errors
/// `OutOfMemory` if there is no memory for a copy of them; `Internal` if one is not held.
pub(super) fn export(
    holding: &Holding,
    state: Option<&Slot>,
    pages: usize,
    runner: &dyn ModelRunner,
) -> Result<Vec<u8>> {
    let missing = || Error::internal("a page of a prefix that is to be saved is not held");
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(prefix_bytes(runner, pages))
        .map_err(|_| Error::out_of_memory("there is no memory to copy the prefix to"))?;
    for (group, first) in first_pages(runner.layout(), pages).into_iter().enumerate() {
        for index in first..pages {
            runner.read_page(group, holding.page(group, index).ok_or_else(missing)?, &mut bytes)?;
        }
    }
    if runner.layout().has_state() {
        runner.read_state(state.ok_or_else(missing)?.number(), &mut bytes)?;
    }
    Ok(bytes)
}

/// Puts a saved prefix into the tree.
///
/// # Errors
/// `OutOfMemory` if it does not fit beside what is in work; `ModelFile` if it was saved from another layout.
pub(super) fn import(
    prefix: &Prefix,
    salt: u64,
    cache: &mut PrefixCache,
    runner: &mut dyn ModelRunner,
) -> Result<()> {
    let pages = prefix.tokens.len() / PAGE;
    if prefix.bytes.len() != prefix_bytes(runner, pages) {
        return Err(Error::model_file(format!(
            "the saved prefix has {} bytes for {pages} pages, and here they take {}; save it again",
            prefix.bytes.len(),
            prefix_bytes(runner, pages)
        )));
    }
    let chunks = prefix.tokens.chunks_exact(PAGE).filter_map(|chunk| Chunk::try_from(chunk).ok());
    if let Some(found) = cache.match_prefix(Place::root(salt), chunks) {
        let whole = found.place.depth == pages;
        found.pages.into_iter().for_each(|(_, _, page)| cache.release(page));
        found.state.into_iter().for_each(|slot| cache.release_slot(slot));
        if whole {
            return Ok(());
        }
    }
    // Held until the end, so that the last pages do not push out the first; cached from then on.
    let mut holding = Holding::new(cache.groups().len());
    let outcome = write(prefix, (pages, salt), &mut holding, cache, runner);
    cache.release_holding(holding);
    outcome
}

fn write(
    prefix: &Prefix,
    (pages, salt): (usize, u64),
    holding: &mut Holding,
    cache: &mut PrefixCache,
    runner: &mut dyn ModelRunner,
) -> Result<()> {
    let mut rest = &prefix.bytes[..];
    for (group, first) in first_pages(runner.layout(), pages).into_iter().enumerate() {
        // What lies before is not saved, and the tree gets nodes without it.
        cache.release(holding.split_before(group, first));
        for _ in first..pages {
            let page = cache.lease(1).ok_or_else(|| no_room(cache))?;
            let (own, behind) = rest.split_at(runner.page_bytes(group).min(rest.len()));
            rest = behind;
            let number = page.pages()[0];
            holding.append(group, page);
            runner.write_page(group, number, own)?;
        }
    }
    let mut snapshot = match runner.layout().has_state() {
        true => Some(cache.lease_slot().ok_or_else(|| no_room(cache))?),
        false => None,
    };
    if let Some(slot) = snapshot.take() {
        match runner.write_state(slot.number(), rest) {
            Ok(()) => snapshot = Some(slot),
            Err(error) => {
                cache.release_slot(slot);
                return Err(error);
            }
        }
    }
    let mut place = Place::root(salt);
    let chunks = prefix.tokens.chunks_exact(PAGE).filter_map(|chunk| Chunk::try_from(chunk).ok());
    for (at, chunk) in chunks.enumerate() {
        let state = if at + 1 == pages { snapshot.take() } else { None };
        place = cache.insert(place, &chunk, holding, state);
    }
    if let Some(slot) = snapshot {
        cache.release_slot(slot);
    }
    Ok(())
}

fn no_room(cache: &PrefixCache) -> Error {
    Error::out_of_memory(format!(
        "the prefix does not fit beside what is in work, into {} pages; raise kv_memory",
        cache.pages().total()
    ))
}
