//! A list as a stream of messages, each of a bounded size: what the Stream RPCs answer with, so that a node with thousands of
//! things can be listed whole. Ends when all is sent; a list of nothing is no message at all.
//! Made in the task of the RPC, encoded as the client takes it: at no time is more than one message held here.
//! Owns the views it encodes from, all of one moment. Must never leave an item out nor cut one short.

use futures_util::stream;
use tonic::codegen::BoxStream;

/// What a message is kept below, bytes, unless one item alone is larger. Far below what any client takes, and large enough that
/// the framing does not count.
const MESSAGE: usize = 512 * 1024;

/// Sends the items, as many to a message as fit. `wrap` makes a message of at least one item.
pub(super) fn stream<T, M, I>(items: I, wrap: fn(Vec<T>) -> M) -> BoxStream<M>
where
    T: prost::Message + 'static,
    M: Send + 'static,
    I: IntoIterator<Item = T>,
    I::IntoIter: Send + 'static,
{
    Box::pin(stream::iter(batches(items.into_iter(), MESSAGE).map(move |batch| Ok(wrap(batch)))))
}

fn batches<T: prost::Message>(items: impl Iterator<Item = T>, limit: usize) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.peekable();
    std::iter::from_fn(move || {
        // Tag and length of each item besides itself.
        let size = |item: &T| item.encoded_len() + 6;
        let first = items.next()?;
        let mut total = size(&first);
        let mut batch = vec![first];
        while let Some(item) = items.next_if(|item| total + size(item) <= limit) {
            total += size(&item);
            batch.push(item);
        }
        Some(batch)
    })
}

#[cfg(test)]
mod tests {
    use keelson_cri::v1;

    use super::*;

    fn image(tags: usize) -> v1::Image {
        v1::Image { repo_tags: vec!["x".repeat(98); tags], ..v1::Image::default() }
    }

    #[test]
    fn messages_are_full_in_order_and_never_above_the_limit() {
        let items: Vec<_> = (0..10).map(|n| v1::Image { id: n.to_string(), ..image(1) }).collect();
        let batches: Vec<Vec<_>> = batches(items.clone().into_iter(), 350).collect();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3, 1]);
        assert_eq!(batches.concat(), items);
    }

    #[test]
    fn an_item_above_the_limit_goes_alone_and_whole() {
        let batches: Vec<_> = batches([image(1), image(9), image(1), image(1)].into_iter(), 350).collect();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 2]);
        assert_eq!(batches[1], [image(9)]);
    }

    #[test]
    fn nothing_is_no_message() {
        assert_eq!(batches(std::iter::empty::<v1::Image>(), 350).count(), 0);
    }

    #[test]
    fn items_are_made_when_they_are_asked_for() {
        let made = std::cell::Cell::new(0);
        let mut batches = batches((0..100).map(|_| image(1)).inspect(|_| made.set(made.get() + 1)), 350);
        assert_eq!(batches.next().map(|batch| batch.len()), Some(3));
        assert!(made.get() <= 4, "{}", made.get());
    }
}
