//! What each side of a handover notes for the process after it.

/// Which side of a handover a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It gives the connection away.
    Source,
    /// It takes it.
    Target,
}

/// How far a handover got on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Note {
    /// Source: it may be offered from now on. The connection is the source's.
    Offering,
    /// Source: COMMIT may be sent from now on. The connection is the target's.
    Committing,
    /// Source: it goes on here.
    Kept,
    /// Source: it lives on the target.
    Moved,
    /// Source: it is gone.
    Lost,
    /// Target: it is accepted, and built when its image comes; nothing of it can be seen from outside.
    Prepared,
    /// Target: from here on it may live.
    Activating,
    /// Target: it lives.
    Active,
    /// Target: it was discarded and never lived.
    Aborted,
}

impl Note {
    /// Whose note it is.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::Offering | Self::Committing | Self::Kept | Self::Moved | Self::Lost => {
                Role::Source
            }
            Self::Prepared | Self::Activating | Self::Active | Self::Aborted => Role::Target,
        }
    }

    /// Whether it is the first of its handover, so that it also has to say what the handover is about.
    #[must_use]
    pub fn is_first(self) -> bool {
        matches!(self, Self::Offering | Self::Prepared)
    }

    /// Whether no other note of the handover follows.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(
            self,
            Self::Kept | Self::Moved | Self::Lost | Self::Active | Self::Aborted
        )
    }
}

/// Where a connection in doubt is, by the word of a person who knows more than the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It goes on at the source. **If the target has it, it has two owners**: both answer its peer, and the streams of
    /// both are corrupted.
    Kept,
    /// It lives on the target. If it does not, nobody has it.
    Moved,
    /// It is gone.
    Lost,
}
