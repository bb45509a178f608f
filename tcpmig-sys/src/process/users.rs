//! Users and groups by their names.

use nix::unistd::{Group, User};

use crate::error::{Error, Result};

/// The number of a user (`getpwnam_r`); `None` if there is no such user.
///
/// # Errors
///
/// [`Error::Call`] if the system's list cannot be read.
pub fn user(name: &str) -> Result<Option<u32>> {
    Ok(account(name)?.map(|account| account.user))
}

/// Who a program runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Account {
    /// The user.
    pub user: u32,
    /// Its own group.
    pub group: u32,
}

/// A user with its own group (`getpwnam_r`); `None` if there is no such user.
///
/// # Errors
///
/// [`Error::Call`] if the system's list cannot be read.
pub fn account(name: &str) -> Result<Option<Account>> {
    let found = User::from_name(name).map_err(|e| Error::new("getpwnam_r", e.into()))?;
    Ok(found.map(|user| Account {
        user: user.uid.as_raw(),
        group: user.gid.as_raw(),
    }))
}

/// The number of a group (`getgrnam_r`); `None` if there is no such group.
///
/// # Errors
///
/// [`Error::Call`] if the system's list cannot be read.
pub fn group(name: &str) -> Result<Option<u32>> {
    let found = Group::from_name(name).map_err(|e| Error::new("getgrnam_r", e.into()))?;
    Ok(found.map(|group| group.gid.as_raw()))
}

/// The name of a user (`getpwuid_r`); `None` if it has none.
///
/// # Errors
///
/// [`Error::Call`] if the system's list cannot be read.
pub fn name(user: u32) -> Result<Option<String>> {
    let found = User::from_uid(user.into()).map_err(|e| Error::new("getpwuid_r", e.into()))?;
    Ok(found.map(|user| user.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_by_its_name_and_number() {
        assert_eq!(user("root").unwrap(), Some(0));
        assert_eq!(group("root").unwrap(), Some(0));
        assert_eq!(name(0).unwrap().as_deref(), Some("root"));
        assert_eq!(
            account("root").unwrap(),
            Some(Account { user: 0, group: 0 })
        );
        assert_eq!(user("nobody has this name").unwrap(), None);
        assert_eq!(group("nobody has this name").unwrap(), None);
    }
}
