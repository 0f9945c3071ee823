//! Tokens of streaming URLs: what a session is for, kept until the client comes for it.
//! Called from RPC handlers and HTTP connections; a short lock over a map, no I/O. Owns the sessions that wait.
//! Must give each token out once, forget it after a minute, and hold no more than a bounded number.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// How long a client may take to come.
const LIFETIME: Duration = Duration::from_secs(60);
/// Sessions that may wait at once.
const WAITING_MAX: usize = 1000;

/// As many sessions wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("prepare streaming session: {WAITING_MAX} sessions already wait for their clients; try again in a minute")]
pub struct TooMany;

/// Sessions by token.
pub struct Tokens<T> {
    waiting: Mutex<HashMap<String, (Instant, T)>>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { waiting: Mutex::default() }
    }
}

impl<T> Tokens<T> {
    /// Keeps a session and returns its token: 16 URL-safe characters from 12 random bytes.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn keep(&self, random: [u8; 12], session: T) -> Result<String, TooMany> {
        self.keep_at(Instant::now(), random, session)
    }

    fn keep_at(&self, now: Instant, random: [u8; 12], session: T) -> Result<String, TooMany> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| is_good(now, *since));
        if waiting.len() >= WAITING_MAX {
            return Err(TooMany);
        }
        let token = URL_SAFE_NO_PAD.encode(random);
        waiting.insert(token.clone(), (now, session));
        Ok(token)
    }

    /// The session of a token, once.
    pub fn take(&self, token: &str) -> Option<T> {
        self.take_at(Instant::now(), token)
    }

    fn take_at(&self, now: Instant, token: &str) -> Option<T> {
        let (since, session) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(token)?;
        is_good(now, since).then_some(session)
    }
}

fn is_good(now: Instant, since: Instant) -> bool {
    now.saturating_duration_since(since) < LIFETIME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once() {
        let tokens = Tokens::default();
        let token = tokens.keep([7; 12], "session").unwrap();
        assert_eq!(token.len(), 16);
        assert_eq!(tokens.take(&token), Some("session"));
        assert_eq!(tokens.take(&token), None);
        assert_eq!(tokens.take("other"), None);
    }

    #[test]
    fn a_token_is_good_for_a_minute_and_then_makes_room() {
        let tokens = Tokens::default();
        let begun = Instant::now();
        let late = begun + LIFETIME;
        let kept: Vec<_> = (0..2).map(|n| tokens.keep_at(begun, [n; 12], n).unwrap()).collect();
        assert_eq!(tokens.take_at(late - Duration::from_millis(1), &kept[0]), Some(0));
        assert_eq!(tokens.take_at(late, &kept[1]), None);
        for n in 0..1000_u16 {
            tokens.keep_at(begun, [n.to_be_bytes(); 6].concat().try_into().unwrap(), 9).unwrap();
        }
        assert_eq!(tokens.keep_at(begun, [255; 12], 9), Err(TooMany));
        let last = tokens.keep_at(late, [255; 12], 9).unwrap();
        assert_eq!(tokens.waiting.lock().unwrap().len(), 1, "those whose minute is over are forgotten");
        assert_eq!(tokens.take_at(late, &last), Some(9));
    }

    #[test]
    fn no_more_than_the_bound_may_wait() {
        let tokens = Tokens::default();
        for i in 0..1000_u16 {
            let mut random = [0; 12];
            random[..2].copy_from_slice(&i.to_be_bytes());
            tokens.keep(random, i).unwrap();
        }
        assert_eq!(tokens.keep([9; 12], 0), Err(TooMany));
    }
}
