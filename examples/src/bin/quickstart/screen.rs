//! Shows the tally while it grows: a picture redrawn in place on a terminal, plain lines anywhere else.
//!
//! It reads, and does NOT influence anything. 79 columns and 23 rows are enough.

use crate::{
    callers::RATE,
    story::CHAPTERS,
    tally::{BACKENDS, Chapter, Picture, Recent, Tally},
};
use std::{
    env,
    io::{self, IsTerminal, Write},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, interval},
};

const BAR: usize = 44;
const FRAME: Duration = Duration::from_millis(100);
const LINE: Duration = Duration::from_secs(1);

/// The task that draws.
pub(crate) struct Screen {
    stop: watch::Sender<bool>,
    drawing: JoinHandle<()>,
}

impl Screen {
    pub(crate) fn start(tally: Arc<Tally>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let is_terminal = io::stdout().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb");
        let drawing =
            if is_terminal { tokio::spawn(redraw(tally, stopped)) } else { tokio::spawn(lines(tally, stopped)) };
        Self { stop, drawing }
    }

    /// Draws for the last time.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        // An error is a panic of the task, whose message is out already.
        let _ = self.drawing.await;
    }
}

/// Nobody may read any more (`| head`): that is no reason to fail.
fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

// === Plain lines ===

async fn lines(tally: Arc<Tally>, mut stopped: watch::Receiver<bool>) {
    let mut frames = interval(FRAME);
    let (mut chapters, mut news, mut due) = (1, 0, Instant::now() + LINE);
    loop {
        let last = tokio::select! {
            _ = frames.tick() => false,
            _ = stopped.wait_for(|stopped| *stopped) => true,
        };
        let picture = tally.picture();
        let seconds = picture.elapsed.as_secs_f64();
        if picture.chapters.len() > chapters {
            chapters = picture.chapters.len();
            due = Instant::now() + LINE;
            print(&format!("{seconds:5.1} s  {}  {}\n", progress(&picture), title(&picture)));
        }
        if picture.news.0 > news {
            news = picture.news.0;
            print(&format!("{seconds:5.1} s         {}\n", picture.news.1));
        }
        if last {
            let rows = picture.chapters.iter().skip(1).map(|chapter| format!("{}\n", row(' ', chapter)));
            print(&format!("\n{HEAD}\n{}", rows.collect::<String>()));
            return;
        }
        if Instant::now() >= due {
            due += LINE;
            print(&format!("{seconds:5.1} s         {}\n", now(&picture)));
        }
    }
}

/// `a 25 %  b 25 %  c 50 %   gRPC 400/s p50 3.1 p99 3.9 ms   HTTP ...   cut 0  failed 0`
fn now(picture: &Picture) -> String {
    let answered = both(picture);
    let mut line = String::new();
    for (name, share) in BACKENDS.iter().zip(shares(&answered)) {
        line += &format!("{name} {:>5}  ", percent(share));
    }
    for (name, recent) in [("gRPC", &picture.grpc), ("HTTP", &picture.http)] {
        let (p50, p99) = (recent.latencies.at(500), recent.latencies.at(990));
        line += &format!(" {name} {:>3}/s p50 {} p99 {} ", recent.answered.iter().sum::<u64>(), ms(p50), ms(p99));
    }
    let (_, cut, failed) = picture.totals();
    format!("{line} cut {cut}  failed {failed}")
}

// === A terminal ===

/// Everything at once, so that no half of it is ever seen: synchronised update, back up, draw, clear what is left.
async fn redraw(tally: Arc<Tally>, mut stopped: watch::Receiver<bool>) {
    // Wrapped lines would be counted wrongly: let the terminal cut them off. The guard brings wrapping back.
    let _restored = Restored;
    print("\x1b[?25l\x1b[?7l");
    let colours = env::var_os("NO_COLOR").is_none();
    let mut frames = interval(FRAME);
    let mut height = 0;
    loop {
        let last = tokio::select! {
            _ = frames.tick() => false,
            _ = stopped.wait_for(|stopped| *stopped) => true,
        };
        let picture = frame(&tally.picture(), last, colours);
        let up = if height > 0 { format!("\x1b[{height}A") } else { String::new() };
        print(&format!("\x1b[?2026h{up}{}\x1b[J\x1b[?2026l", picture.replace('\n', "\x1b[K\n")));
        height = picture.matches('\n').count();
        if last {
            return;
        }
    }
}

struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        print("\x1b[?7h\x1b[?25h");
    }
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";

fn frame(picture: &Picture, over: bool, colours: bool) -> String {
    let paint = |colour: &str, text: &str| {
        if colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    };
    let mut frame = format!("\n{}\n", paint(DIM, HEAD));
    let current = picture.chapters.len() - 1;
    for (index, title) in titles(picture).into_iter().enumerate() {
        let line = match picture.chapters.get(index + 1) {
            Some(chapter) => {
                let is_current = index + 1 == current && !over;
                let row = row(if is_current { '▸' } else { '✓' }, chapter);
                let colour = match chapter {
                    Chapter { failed: 1.., .. } => RED,
                    Chapter { cut: 1.., .. } => YELLOW,
                    _ if is_current => BOLD,
                    _ => GREEN,
                };
                paint(colour, &row)
            }
            None => paint(DIM, &format!("    {title}")),
        };
        frame += &format!("{line}\n");
    }
    if !over {
        frame += &format!("\n{}\n", paint(DIM, "  where calls go now"));
        let answered = both(picture);
        for ((name, share), count) in BACKENDS.iter().zip(shares(&answered)).zip(answered) {
            let (full, empty) = bar(share);
            let version = if *name == "c" { "v2" } else { "v1" };
            let bar = format!("{}{}", paint(CYAN, &full), paint(DIM, &empty));
            frame += &format!("    {version} {name}  {bar} {:>5} {count:>5}/s\n", percent(share));
        }
        let head = "  mesh and network take    p50       p90       p99       max       calls";
        frame += &format!("\n{}\n", paint(DIM, head));
        for (name, Recent { answered, latencies }) in [("gRPC", &picture.grpc), ("HTTP", &picture.http)] {
            frame += &format!("    {name:<17}");
            for per_mille in [500, 900, 990, 1000] {
                frame += &format!("{:>7} ms", ms(latencies.at(per_mille)));
            }
            frame += &format!("{:>10}/s\n", answered.iter().sum::<u64>());
        }
    }
    // A chapter counts for half while it is told.
    let share = (current as f64 - 0.5) / CHAPTERS.len() as f64;
    let (full, empty) = bar(share.clamp(0.0, 1.0));
    let seconds = picture.elapsed.as_secs_f64();
    let progress = format!("{}{} {} {seconds:5.1} s", paint(GREEN, &full), paint(DIM, &empty), progress(picture));
    if !over {
        frame += &format!("\n  {progress}\n  {}\n", picture.news.1);
    }
    frame
}

// === Words ===

const HEAD: &str = "    what happens                 a     b     c  p50 ms  p99 ms    cut   failed";

fn row(mark: char, chapter: &Chapter) -> String {
    let mut row = format!("  {mark} {:<24}", chapter.title);
    for share in shares(&chapter.answered) {
        row += &format!("{:>6}", percent(share));
    }
    for per_mille in [500, 990] {
        row += &format!("{:>8}", ms(chapter.latencies.at(per_mille)));
    }
    row + &format!("{:>7}{:>9}", chapter.cut, chapter.failed)
}

/// Those that have begun, and those that are to come.
fn titles(picture: &Picture) -> Vec<&'static str> {
    let begun = picture.chapters.iter().skip(1).map(|chapter| chapter.title);
    let to_come = CHAPTERS.iter().skip(picture.chapters.len() - 1).copied();
    begun.chain(to_come).collect()
}

fn title(picture: &Picture) -> &'static str {
    picture.chapters.last().map_or("", |chapter| chapter.title)
}

fn progress(picture: &Picture) -> String {
    let begun = picture.chapters.len() - 1;
    format!("[{begun}/{}]", CHAPTERS.len().max(begun))
}

fn both(picture: &Picture) -> [u64; BACKENDS.len()] {
    std::array::from_fn(|index| picture.grpc.answered[index] + picture.http.answered[index])
}

fn shares(answered: &[u64]) -> impl Iterator<Item = f64> {
    let all = answered.iter().sum::<u64>().max(1) as f64;
    answered.iter().map(move |count| *count as f64 / all)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn ms(latency: Option<Duration>) -> String {
    latency.map_or_else(|| "-".to_owned(), |latency| format!("{:.2}", latency.as_secs_f64() * 1e3))
}

/// The full part of a bar, in eighths, and the empty one.
fn bar(share: f64) -> (String, String) {
    let eighths = (share * (BAR * 8) as f64).round() as usize;
    let mut full = "█".repeat(eighths / 8);
    let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    full += part;
    let empty = BAR - eighths / 8 - usize::from(!part.is_empty());
    (full, "░".repeat(empty))
}

/// What the screen says before the first picture.
pub(crate) fn introduction(world: &crate::world::World) {
    let backends: Vec<_> = world.backends().map(|(name, address)| format!("{name} {address}")).collect();
    print(&format!(
        "\n  A tonic and an HTTP client call xds:///echo.prod:80 {RATE} times a second each.\n  \
           A call is {} ms of work for a backend. Latencies are what mesh and network add.\n\n  \
           control plane  {} serves {}\n  \
           backends       {}\n",
        crate::world::WORK.as_millis(),
        world.control_plane_address(),
        world.directory().display(),
        backends.join("   "),
    ));
}

/// How it went: all calls, and the first failures.
pub(crate) fn conclusion(picture: &Picture) {
    let (answered, cut, failed) = picture.totals();
    let all = answered + cut + failed;
    let mut text = format!("\n  {all} calls: {answered} answered, {cut} cut with backend b, {failed} failed\n");
    for failure in &picture.failures {
        text += &format!("    {failure}\n");
    }
    print(&text);
}
