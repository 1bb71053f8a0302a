//! This process as the kernel sees it, under the names that every Prometheus client library uses.

use std::fs;

/// What the kernel tells about this process; what it does not tell is none.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) open_fds: Option<f64>,
    pub(super) max_fds: Option<f64>,
    pub(super) virtual_bytes: Option<f64>,
    pub(super) resident_bytes: Option<f64>,
    pub(super) started: Option<f64>,
    pub(super) threads: Option<f64>,
}

/// Fields of /proc/self/stat, counted from behind the program's name (proc_pid_stat(5) counts from 1, and the
/// name is field 2).
const UTIME: usize = 14 - 3;
const STIME: usize = 15 - 3;
const THREADS: usize = 20 - 3;
const START_TICKS: usize = 22 - 3;

/// The unit of times in /proc: fixed at a hundredth of a second for programs (USER_HZ) on every architecture that
/// we build for, whatever the kernel's own tick.
const TICKS_PER_SECOND: f64 = 100.0;

impl Process {
    /// Looks.
    pub(super) fn observe() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let memory = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count());
        Self { open_fds: open.map(super::float), ..Self::read(&stat, &boot, &memory, &limits) }
    }

    fn read(stat: &str, boot: &str, memory: &str, limits: &str) -> Self {
        // The name may hold spaces and brackets; what follows its last bracket does not.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let field = |index: usize| fields.get(index)?.parse::<u64>().ok().map(super::float);
        let seconds = |ticks: f64| ticks / TICKS_PER_SECOND;
        let bytes = |label: &str| number_after(memory, label).map(|kibibytes| kibibytes * 1024.0);
        let booted = number_after(boot, "btime");
        Self {
            cpu_seconds: field(UTIME).zip(field(STIME)).map(|(user, system)| seconds(user + system)),
            open_fds: None,
            max_fds: number_after(limits, "Max open files"),
            virtual_bytes: bytes("VmSize:"),
            resident_bytes: bytes("VmRSS:"),
            started: booted.zip(field(START_TICKS)).map(|(boot, ticks)| boot + seconds(ticks)),
            threads: field(THREADS),
        }
    }
}

/// The first number on the line that begins with `label`.
fn number_after(text: &str, label: &str) -> Option<f64> {
    let word = text.lines().find_map(|line| line.strip_prefix(label))?.split_whitespace().next()?;
    word.parse::<u64>().ok().map(super::float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found() {
        let process = Process::observe();
        assert!(process.cpu_seconds.is_some_and(|seconds| seconds >= 0.0));
        assert!(process.open_fds.is_some_and(|count| count >= 3.0));
        assert!(process.max_fds.is_some_and(|count| count >= 3.0));
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 100_000.0));
        assert!(process.virtual_bytes >= process.resident_bytes);
        assert!(process.started.is_some_and(|seconds| seconds > 1_000_000_000.0));
        assert!(process.threads.is_some_and(|count| count >= 1.0));
    }

    #[test]
    fn a_program_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 1 1 0 -1 4 0 0 0 0 100 50 0 0 20 0 9 0 300 4096 2 x";
        let process = Process::read(stat, "btime 1000\n", "VmSize:\t    4 kB\n", "");
        assert_eq!(process.threads, Some(9.0));
        assert_eq!(process.virtual_bytes, Some(4096.0));
        assert_eq!(process.started, Some(1000.0 + 300.0 / TICKS_PER_SECOND));
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_left_out() {
        let process = Process::read("", "", "", "");
        assert_eq!((process.cpu_seconds, process.started, process.max_fds), (None, None, None));
    }
}
