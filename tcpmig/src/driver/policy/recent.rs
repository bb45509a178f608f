//! What was found out lately.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For so long an answer counts: many connections that come at once have the same questions.
const LASTS: Duration = Duration::from_secs(1);
/// No more answers than this are kept.
const KEPT: usize = 1024;

/// Answers that count for a second.
pub(super) struct Recent<Q, A>(Mutex<HashMap<Q, (Instant, A)>>);

impl<Q, A> Default for Recent<Q, A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<Q: Eq + Hash, A: Clone> Recent<Q, A> {
    /// What was answered, or is.
    pub(super) fn get<E>(&self, question: Q, ask: impl FnOnce() -> Result<A, E>) -> Result<A, E> {
        self.get_within(LASTS, question, ask)
    }

    /// Asks if the answer will soon not count any more, so that whoever asks next has one.
    pub(super) fn freshen<E>(&self, question: Q, ask: impl FnOnce() -> Result<A, E>) {
        // Whoever needs it asks again, and is told.
        let _ = self.get_within(LASTS / 2, question, ask);
    }

    fn get_within<E>(
        &self,
        age: Duration,
        question: Q,
        ask: impl FnOnce() -> Result<A, E>,
    ) -> Result<A, E> {
        // A panic leaves what is in it as it was.
        let answers = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, answer)) = answers().get(&question)
            && when.elapsed() < age
        {
            return Ok(answer.clone());
        }
        let when = Instant::now();
        let answer = ask()?;
        let mut answers = answers();
        if answers.len() >= KEPT {
            answers.clear();
        }
        answers.insert(question, (when, answer.clone()));
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_not_kept_and_answers_are() {
        let recent = Recent::default();
        assert_eq!(recent.get(1, || Err("no")), Err("no"));
        assert_eq!(recent.get(1, || Ok::<_, &str>('a')), Ok('a'));
        assert_eq!(recent.get(1, || Err("not asked")), Ok('a'));
        assert_eq!(recent.get(2, || Ok::<_, &str>('b')), Ok('b'));
    }

    #[test]
    fn an_old_answer_is_asked_for_again() {
        let recent = Recent::default();
        recent.get(1, || Ok::<_, ()>('a')).unwrap();
        let old = Instant::now().checked_sub(LASTS).unwrap();
        recent.0.lock().unwrap().get_mut(&1).unwrap().0 = old;
        assert_eq!(recent.get(1, || Ok::<_, ()>('b')), Ok('b'));
    }

    #[test]
    fn an_answer_of_some_age_is_freshened() {
        let recent = Recent::default();
        recent.freshen(1, || Ok::<_, ()>('a'));
        recent.freshen(1, || Ok::<_, ()>('b'));
        assert_eq!(recent.get(1, || Err(())), Ok('a'));
        let old = Instant::now().checked_sub(LASTS / 2).unwrap();
        recent.0.lock().unwrap().get_mut(&1).unwrap().0 = old;
        recent.freshen(1, || Ok::<_, ()>('b'));
        assert_eq!(recent.get(1, || Err(())), Ok('b'));
    }

    #[test]
    fn no_more_than_its_room_is_kept() {
        let recent = Recent::default();
        for question in 0..=KEPT {
            recent.get(question, || Ok::<_, ()>(())).unwrap();
        }
        assert_eq!(recent.0.lock().unwrap().len(), 1);
    }
}
