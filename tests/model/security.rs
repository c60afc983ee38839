//! Users, tokens, security descriptors, and memory that callers free with `LocalFree`.

use std::{collections::BTreeMap, ffi::c_void};

use windows_sys::Win32::{
    Foundation::{GENERIC_ALL, GENERIC_EXECUTE, GENERIC_READ, GENERIC_WRITE},
    Security::{SECURITY_IMPERSONATION_LEVEL, SecurityImpersonation},
    Storage::FileSystem::{
        FILE_ALL_ACCESS, FILE_FLAGS_AND_ATTRIBUTES, FILE_GENERIC_EXECUTE, FILE_GENERIC_READ,
        FILE_GENERIC_WRITE, READ_CONTROL, SECURITY_CONTEXT_TRACKING, SECURITY_DELEGATION,
        SECURITY_SQOS_PRESENT, WRITE_DAC,
    },
};

const EVERYONE: &str = "S-1-1-0";

/// The user that a process runs as, with SIDs in text form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's SID.
    pub sid: &'static str,
    /// The default owner of objects that the user creates.
    pub owner: &'static str,
    /// Groups other than Everyone.
    pub groups: &'static [&'static str],
}

impl User {
    /// An ordinary user, logged on at the console.
    pub const PLAIN: Self = Self {
        sid: "S-1-5-21-1-2-3-1001",
        owner: "S-1-5-21-1-2-3-1001",
        groups: &["S-1-5-11"],
    };

    /// The same user with an elevated administrator's token.
    pub const ELEVATED: Self = Self {
        sid: "S-1-5-21-1-2-3-1001",
        owner: "S-1-5-32-544",
        groups: &["S-1-5-11", "S-1-5-32-544"],
    };

    /// The same user, logged on through SSH.
    pub const NETWORK: Self = Self {
        sid: "S-1-5-21-1-2-3-1001",
        owner: "S-1-5-21-1-2-3-1001",
        groups: &["S-1-5-11", "S-1-5-2"],
    };

    /// Another ordinary user of the machine.
    pub const OTHER: Self = Self {
        sid: "S-1-5-21-1-2-3-1002",
        owner: "S-1-5-21-1-2-3-1002",
        groups: &["S-1-5-11"],
    };

    /// A service under the LocalSystem account.
    pub const LOCAL_SYSTEM: Self = Self {
        sid: "S-1-5-18",
        owner: "S-1-5-32-544",
        groups: &["S-1-5-11", "S-1-5-32-544"],
    };

    /// A service under the LocalService account, which has few rights.
    pub const LOCAL_SERVICE: Self = Self {
        sid: "S-1-5-19",
        owner: "S-1-5-19",
        groups: &["S-1-5-11"],
    };
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) user: User,
    /// `None` for the token of a process.
    pub(super) level: Option<SECURITY_IMPERSONATION_LEVEL>,
}

impl Token {
    pub(super) fn new(user: User) -> Self {
        let level = None;
        Self { user, level }
    }

    /// The token that a client of this process gives to its server.
    pub(super) fn at(&self, level: SECURITY_IMPERSONATION_LEVEL) -> Self {
        let (user, level) = (self.user.clone(), Some(level));
        Self { user, level }
    }

    fn holds(&self, sid: &str) -> bool {
        sid == EVERYONE || sid == self.user.sid || self.user.groups.contains(&sid)
    }
}

/// A client's quality of service: what its server learns of it, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quality {
    pub(super) level: SECURITY_IMPERSONATION_LEVEL,
    /// Whether the token is taken at each write, and given to the server with what it reads.
    /// Otherwise it is taken at the open, and given at once.
    pub(super) is_dynamic: bool,
}

impl Quality {
    /// The quality that `CreateFileW` requests with these flags.
    pub(super) fn requested(flags: FILE_FLAGS_AND_ATTRIBUTES) -> Self {
        if flags & SECURITY_SQOS_PRESENT == 0 {
            // The default of ReactOS's NpInitializeSecurity.
            return Self {
                level: SecurityImpersonation,
                is_dynamic: true,
            };
        }
        Self {
            // The highest level is the mask of all.
            level: ((flags & SECURITY_DELEGATION) >> SECURITY_DELEGATION.trailing_zeros()) as _,
            is_dynamic: flags & SECURITY_CONTEXT_TRACKING != 0,
        }
    }
}

/// A security descriptor: an owner and an access list.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    pub(super) owner: Option<String>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    allows: bool,
    rights: u32,
    sid: String,
}

impl Descriptor {
    /// The descriptor of a pipe created without one (*CreateNamedPipe*, `lpSecurityAttributes`).
    pub(super) fn default_of(token: &Token) -> Self {
        let owner = token.user.owner.to_owned();
        let entry = |rights, sid: &str| Entry {
            allows: true,
            rights,
            sid: sid.to_owned(),
        };
        Self {
            entries: vec![
                entry(FILE_ALL_ACCESS, "S-1-5-18"),
                entry(FILE_ALL_ACCESS, "S-1-5-32-544"),
                entry(FILE_ALL_ACCESS, &owner),
                entry(FILE_GENERIC_READ, EVERYONE),
                entry(FILE_GENERIC_READ, "S-1-5-7"),
            ],
            owner: Some(owner),
        }
    }

    /// Parses the part of the *Security Descriptor String Format* that tests use.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (owner, list) = match text.split_once("D:")? {
            ("", list) => (None, list),
            (head, list) => (Some(sid(head.strip_prefix("O:")?)?), list),
        };
        let list = list.strip_prefix('P').unwrap_or(list);
        let mut entries = Vec::new();
        if !list.is_empty() {
            let list = list.strip_prefix('(')?.strip_suffix(')')?;
            for entry in list.split(")(") {
                let fields: Vec<_> = entry.split(';').collect();
                let [kind, "", rights, "", "", holder] = fields[..] else {
                    return None;
                };
                entries.push(Entry {
                    allows: match kind {
                        "A" => true,
                        "D" => false,
                        _ => return None,
                    },
                    rights: parse_rights(rights)?,
                    sid: sid(holder)?,
                });
            }
        }
        Some(Self { owner, entries })
    }

    /// Whether `token` is granted all of `rights`.
    pub(super) fn allows(&self, token: &Token, rights: u32) -> bool {
        let mut missing = mapped(rights);
        if self
            .owner
            .as_deref()
            .is_some_and(|owner| token.holds(owner))
        {
            missing &= !(READ_CONTROL | WRITE_DAC);
        }
        for entry in &self.entries {
            if token.holds(&entry.sid) {
                if entry.allows {
                    missing &= !entry.rights;
                } else if missing & entry.rights != 0 {
                    return false;
                }
            }
        }
        missing == 0
    }
}

/// Maps generic rights to file rights.
pub(super) fn mapped(rights: u32) -> u32 {
    let mut mapped = rights & 0x0fff_ffff;
    for (generic, specific) in [
        (GENERIC_ALL, FILE_ALL_ACCESS),
        (GENERIC_READ, FILE_GENERIC_READ),
        (GENERIC_WRITE, FILE_GENERIC_WRITE),
        (GENERIC_EXECUTE, FILE_GENERIC_EXECUTE),
    ] {
        if rights & generic != 0 {
            mapped |= specific;
        }
    }
    mapped
}

fn parse_rights(text: &str) -> Option<u32> {
    if let Some(number) = text.strip_prefix("0x") {
        return u32::from_str_radix(number, 16).ok().map(mapped);
    }
    let mut rights = 0;
    for index in (0..text.len()).step_by(2) {
        rights |= match text.get(index..index + 2)? {
            "GA" | "FA" => FILE_ALL_ACCESS,
            "GR" | "FR" => FILE_GENERIC_READ,
            "GW" | "FW" => FILE_GENERIC_WRITE,
            "GX" | "FX" => FILE_GENERIC_EXECUTE,
            "RC" => READ_CONTROL,
            _ => return None,
        };
    }
    Some(rights)
}

fn sid(text: &str) -> Option<String> {
    let sid = match text {
        "SY" => "S-1-5-18",
        "LS" => "S-1-5-19",
        "BA" => "S-1-5-32-544",
        "WD" => EVERYONE,
        "AU" => "S-1-5-11",
        "NU" => "S-1-5-2",
        "AN" => "S-1-5-7",
        text if binary_sid(text).is_some() => text,
        _ => return None,
    };
    Some(sid.to_owned())
}

/// A SID in binary form: revision, count, authority, subauthorities.
pub(super) fn binary_sid(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.strip_prefix("S-1-")?.split('-');
    let authority: u64 = parts.next()?.parse().ok()?;
    let subauthorities: Vec<u32> = parts.map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let mut sid = vec![1, u8::try_from(subauthorities.len()).ok()?];
    sid.extend_from_slice(&authority.to_be_bytes()[2..]);
    for subauthority in subauthorities {
        sid.extend_from_slice(&subauthority.to_le_bytes());
    }
    Some(sid)
}

/// The text form of a binary SID.
///
/// # Safety
///
/// `sid` has to point to a valid SID.
pub(super) unsafe fn sid_text(sid: *const u8) -> String {
    // SAFETY: the caller guarantees a valid SID; its header has eight bytes, the second of which is
    // the number of subauthorities of four bytes that follow.
    let (count, sid) = unsafe {
        let count = usize::from(*sid.add(1));
        (count, std::slice::from_raw_parts(sid, 8 + 4 * count))
    };
    let mut authority = [0; 8];
    authority[2..].copy_from_slice(&sid[2..8]);
    let mut text = format!("S-1-{}", u64::from_be_bytes(authority));
    for index in 0..count {
        let mut subauthority = [0; 4];
        subauthority.copy_from_slice(&sid[8 + 4 * index..][..4]);
        text += &format!("-{}", u32::from_le_bytes(subauthority));
    }
    text
}

/// Blocks of memory that callers free with `LocalFree`, by address.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    memory: BTreeMap<usize, Vec<u64>>,
    descriptors: BTreeMap<usize, Descriptor>,
}

impl Blocks {
    /// Allocates a block with a copy of `bytes`.
    pub(super) fn lend(&mut self, bytes: &[u8]) -> *mut c_void {
        let mut block = vec![0_u64; bytes.len().div_ceil(8).max(1)];
        let address: *mut u8 = block.as_mut_ptr().cast();
        // SAFETY: the block is at least as long as `bytes`.
        unsafe { address.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.memory.insert(address.addr(), block);
        address.cast()
    }

    pub(super) fn lend_descriptor(&mut self, descriptor: Descriptor) -> *mut c_void {
        let address = self.lend(&[]);
        self.descriptors.insert(address.addr(), descriptor);
        address
    }

    pub(super) fn descriptor(&self, address: *const c_void) -> &Descriptor {
        self.descriptors
            .get(&address.addr())
            .expect("the security descriptor was freed")
    }

    /// Frees a block. Returns whether it was one of these.
    pub(super) fn free(&mut self, address: *const c_void) -> bool {
        self.descriptors.remove(&address.addr());
        self.memory.remove(&address.addr()).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }
}
