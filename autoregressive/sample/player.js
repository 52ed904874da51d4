// Shows what the server sends as `props.value`: the state of a clip that is made, a clip, or why there is none. An
// endless video is played link by link; when one begins the next is ordered, so that nothing is made for a closed page.
const find = (name) => element.querySelector(name);
let [front, back] = element.querySelectorAll("video");
const preview = find("img"), bar = find("progress");
const waiting = [];  // links that have come while another plays
let ordered = null;  // when the clip that is made was asked for, null if none is
let rate, endless = false, busy = false;

const say = (name, text) => { find(name).textContent = text; };

function order() {
  ordered = performance.now();
  trigger("submit");
}

function play(clip) {
  back.src = clip.video;
  back.loop = !endless;
  back.playbackRate = back.defaultPlaybackRate = endless ? Math.max(rate / clip.fps, 1 / 16) : 1;
  back.onloadeddata = () => {
    [front, back] = [back, front];
    front.classList.add("on");
    for (const other of [back, preview]) other.classList.remove("on");
    back.pause();
    front.play();
    element.dataset.played = Number(element.dataset.played || 0) + 1;
  };
  back.onended = () => {
    busy = false;
    if (waiting.length) play(waiting.shift());
  };
  busy = true;
  say(".caption", clip.caption);
  say(".notice", clip.notice);
  for (const [name, suffix] of [["video", ".mp4"], ["frames", ".zip"]]) {
    Object.assign(find(`a.${name}`), {href: clip[name], download: clip.name + suffix});
  }
  find(".files").style.display = "flex";
  if (endless) order();
}

function receive(clip) {
  if (ordered === null) return;  // Gradio sends the last message twice; or it was stopped
  const seconds = (performance.now() - ordered) / 1000;
  ordered = null;
  bar.style.visibility = "hidden";
  if (!endless) {
    say(".status", `Made in ${seconds.toFixed(1)} s.`);
  } else {  // a link shall last a little longer than the next one takes
    if (clip.link === 0) rate = clip.fps;
    rate = Math.min(rate, 0.85 * clip.count / seconds);
    say(".status", `Endless: plays ${rate.toFixed(1)} frames per second, as fast as they are made here `
        + `(${clip.fps} would be lifelike).`);
  }
  if (endless && clip.link > 0 && busy) waiting.push(clip);
  else play(clip);
}

watch("value", () => {
  const now = props.value;
  if (now.state === "clip") return receive(now);
  if (now.state === "stopped" || now.state === "failed") {
    ordered = null;
    endless = false;
    waiting.length = 0;
    bar.style.visibility = "hidden";
    return say(".status", now.state === "stopped" ? "Stopped." : "No clip was made.");
  }
  if (now.state === "begin") {
    endless = now.endless;
    waiting.length = 0;
    front.loop = true;  // what is there goes on until the new clip comes
    find(".empty").style.display = "none";
    say(".status", "Waiting for the model ...");
    find(".stage").scrollIntoView({block: "nearest", behavior: "smooth"});  // on a phone it is below the buttons
    return order();
  }
  if (now.link > 0 || ordered === null) return;  // the link before plays, or it was stopped
  say(".status", `Making the clip: ${Math.round(100 * now.part)} %`);
  bar.value = now.part;
  bar.style.visibility = "visible";
  if (now.preview) {
    preview.src = now.preview;
    preview.classList.add("on");
    front.classList.remove("on");
  }
});
