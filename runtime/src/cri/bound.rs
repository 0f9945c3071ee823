//! Keeps a list within one message: with thousands of ended things and large annotations it would not fit, no client could
//! list, and kubelet could not even clean up.
//! Pure, in the task of the RPC. Owns nothing.
//! Must never leave an item out, nor touch one that still runs: the statuses go on telling everything.

use std::collections::HashMap;

use keelson_cri::{MAX_MESSAGE_BYTES, v1};

/// What a list is kept below, bytes; the rest is for framing.
const LIMIT: usize = MAX_MESSAGE_BYTES - 64 * 1024;

/// What the status of a sandbox may take of a message, bytes.
const SANDBOX: usize = 1024 * 1024;

/// Takes the annotations of ended things, oldest first, until the list fits. `expendable` gives them, for one that has ended.
pub(super) fn shrink<T: prost::Message>(
    items: &mut [T],
    expendable: impl Fn(&mut T) -> Option<&mut HashMap<String, String>>,
) {
    shrink_to(items, expendable, LIMIT);
}

/// The same for the statuses of one sandbox's containers, which are part of a larger message.
pub(super) fn shrink_statuses(statuses: &mut [v1::ContainerStatus]) {
    let exited = |it: &mut v1::ContainerStatus| it.state() == v1::ContainerState::ContainerExited;
    shrink_to(statuses, |it| exited(it).then_some(&mut it.annotations), LIMIT - SANDBOX);
}

fn shrink_to<T: prost::Message>(
    items: &mut [T],
    expendable: impl Fn(&mut T) -> Option<&mut HashMap<String, String>>,
    limit: usize,
) {
    // Tag and length of each item besides itself.
    let size = |item: &T| item.encoded_len() + 6;
    let mut total: usize = items.iter().map(size).sum();
    for item in items {
        if total <= limit {
            return;
        }
        let before = size(item);
        if let Some(annotations) = expendable(item) {
            annotations.clear();
            total = total - before + size(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> Vec<v1::Container> {
        let annotations = HashMap::from([("note".to_owned(), "x".repeat(1000))]);
        let container = |state| v1::Container { state, annotations: annotations.clone(), ..v1::Container::default() };
        vec![container(2), container(1), container(2), container(2)]
    }

    fn kept(limit: usize) -> Vec<usize> {
        let mut list = list();
        shrink_to(&mut list, |it| (it.state == 2).then_some(&mut it.annotations), limit);
        list.iter().map(|container| container.annotations.len()).collect()
    }

    #[test]
    fn a_list_that_fits_is_left_alone() {
        assert_eq!(kept(5000), [1, 1, 1, 1]);
    }

    #[test]
    fn the_oldest_ended_ones_give_first_and_running_ones_never() {
        assert_eq!(kept(3500), [0, 1, 1, 1]);
        assert_eq!(kept(2500), [0, 1, 0, 1]);
        assert_eq!(kept(0), [0, 1, 0, 0]);
    }
}
