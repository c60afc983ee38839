//! Counts what this process holds: handles, threads, memory, and the instances of its pipe.
#![allow(
    unsafe_code,
    reason = "an allocator, and system calls that no safe crate wraps"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fmt, io,
    sync::atomic::{AtomicUsize, Ordering},
};

/// A count of everything that could leak, taken while no client is connected.
#[derive(Clone, Copy, Debug)]
pub struct Census {
    /// Handles on Windows, file descriptors on Linux.
    pub handles: usize,
    pub threads: usize,
    /// Server ends of the pipe in the whole system.
    pub instances: usize,
    /// Bytes that Rust code has allocated and not freed.
    pub heap: usize,
    /// The process's memory in bytes: resident on Linux, private on Windows.
    pub memory: usize,
}

impl fmt::Display for Census {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kibibytes = |bytes: usize| bytes as f64 / 1024.0;
        write!(
            formatter,
            "{} handles, {} threads, {} instances, {:.1} KiB heap, {:.0} KiB memory",
            self.handles,
            self.threads,
            self.instances,
            kibibytes(self.heap),
            kibibytes(self.memory),
        )
    }
}

/// The system's allocator with a count of the bytes in use. The count is exact, unlike the
/// process's memory, since freed memory usually stays with the process.
#[derive(Debug)]
pub struct CountingAllocator;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards every call to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: guaranteed by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        IN_USE.fetch_add(size, Ordering::Relaxed);
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: guaranteed by the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[cfg(target_os = "linux")]
impl Census {
    /// Counts what this process and the pipe at `address` hold.
    pub fn take(address: &str) -> io::Result<Self> {
        use std::fs;

        let memory = fs::read_to_string("/proc/self/smaps_rollup")?;
        let resident = memory
            .lines()
            .find_map(|line| line.strip_prefix("Rss:")?.strip_suffix("kB"));
        let resident: usize = resident
            .and_then(|kibibytes| kibibytes.trim().parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        // The listening socket and all sockets queued on it or accepted from it have its path.
        let sockets = fs::read_to_string("/proc/net/unix")?;
        Ok(Self {
            handles: fs::read_dir("/proc/self/fd")?.count(),
            threads: fs::read_dir("/proc/self/task")?.count(),
            instances: sockets
                .lines()
                .filter(|line| line.ends_with(address))
                .count(),
            heap: IN_USE.load(Ordering::Relaxed),
            memory: resident * 1024,
        })
    }
}

#[cfg(windows)]
impl Census {
    /// Counts what this process and the pipe at `address`, which has to echo, hold. Connects one
    /// client, since the number of instances can be queried only through an end of the pipe.
    pub fn take(address: &str) -> io::Result<Self> {
        use std::{
            fs::File,
            io::{Read as _, Write as _},
        };

        use winsafe::{HPROCESS, HPROCESSLIST, co, prelude::*};

        let mut client = File::options().read(true).write(true).open(address)?;
        // When the reply arrives, the server has accepted and has created the next instance.
        client.write_all(b"?")?;
        client.read_exact(&mut [0])?;
        let instances = instances(&client)?;

        let error = |error: co::ERROR| io::Error::from_raw_os_error(error.raw() as i32);
        let memory = HPROCESS::GetCurrentProcess()
            .GetProcessMemoryInfo()
            .map_err(error)?;
        let mut list =
            HPROCESSLIST::CreateToolhelp32Snapshot(co::TH32CS::SNAPPROCESS, None).map_err(error)?;
        // Not iterated to its end, where winsafe 0.0.23 leaks the snapshot's handle.
        let threads = list.iter_processes().find_map(|process| {
            let process = process.ok()?;
            (process.th32ProcessID == std::process::id()).then_some(process.cntThreads)
        });
        Ok(Self {
            handles: handles(),
            threads: threads.ok_or(io::ErrorKind::NotFound)? as usize,
            instances,
            heap: IN_USE.load(Ordering::Relaxed),
            // The same as `PrivateUsage`, which Wine 8 does not report.
            memory: memory.PagefileUsage,
        })
    }
}

/// The largest memory that a process has had in bytes, resident at once.
#[cfg(windows)]
pub fn peak_memory(process: u32) -> io::Result<usize> {
    use winsafe::{HPROCESS, co, prelude::*};

    let rights = co::PROCESS::QUERY_LIMITED_INFORMATION | co::PROCESS::VM_READ;
    let process = HPROCESS::OpenProcess(rights, false, process);
    let memory = process.and_then(|process| process.GetProcessMemoryInfo());
    memory
        .map(|memory| memory.PeakWorkingSetSize)
        .map_err(|error| io::Error::from_raw_os_error(error.raw() as i32))
}

/// The number of open handles, counted by trying the lowest handle values. `GetProcessHandleCount`
/// always reports 0 on Wine 8.
#[cfg(windows)]
fn handles() -> usize {
    use windows_sys::Win32::Foundation::{GetHandleInformation, HANDLE};

    (1..4096)
        .filter(|number| {
            let handle = (number * 4) as HANDLE;
            let mut flags = 0;
            // SAFETY: any value may be queried, and `flags` outlives the call.
            unsafe { GetHandleInformation(handle, &mut flags) != 0 }
        })
        .count()
}

/// The number of instances of the pipe that `client` is connected to.
#[cfg(windows)]
fn instances(client: &std::fs::File) -> io::Result<usize> {
    use std::{os::windows::io::AsRawHandle as _, ptr};

    use windows_sys::Win32::System::Pipes::GetNamedPipeHandleStateW;

    let mut instances = 0;
    // SAFETY: the handle is open, `instances` outlives the call, and nothing else is queried.
    let done = unsafe {
        GetNamedPipeHandleStateW(
            client.as_raw_handle(),
            ptr::null_mut(),
            &mut instances,
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null_mut(),
            0,
        )
    };
    if done == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(instances as usize)
}
