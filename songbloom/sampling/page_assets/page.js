"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  let words = data.words.en;

  // ---- language: what was chosen here before, else what the browser speaks
  const remembered = () => {
    try { return localStorage.getItem("songbloom-language"); } catch { return null; }
  };
  const remember = (language) => {
    try { localStorage.setItem("songbloom-language", language); } catch { /* a page opened as a file may not store */ }
  };
  const speak = (language) => {
    words = data.words[language];
    document.documentElement.lang = language;
    for (const place of document.querySelectorAll("[data-word]")) place.textContent = words[place.dataset.word];
    for (const place of document.querySelectorAll("[data-label]")) place.setAttribute("aria-label", words[place.dataset.label]);
    for (const place of document.querySelectorAll("[data-alt]")) place.alt = words[place.dataset.alt];
    for (const player of players) player.show();
    toggle.lang = language === "ja" ? "en" : "ja";
  };
  const toggle = document.getElementById("language");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const language = document.documentElement.lang === "ja" ? "en" : "ja";
    remember(language);
    speak(language);
  });

  const clock = (seconds) => {
    const whole = Math.floor(seconds + 1e-6);
    const two = (number) => String(number).padStart(2, "0");
    const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
    return (hours ? hours + ":" + two(minutes) : minutes) + ":" + two(whole % 60);
  };

  const still = matchMedia("(prefers-reduced-motion: reduce)");

  class Player {
    constructor(article, item) {
      this.article = article;
      this.item = item;
      this.audio = article.querySelector("audio");
      this.button = article.querySelector(".play");
      this.line = article.querySelector(".timeline");
      this.now = article.querySelector(".clock span");
      this.wanted = null; // a position that was asked for before the sound could go there
      this.whole = null; // a promise of the whole file, where the server cannot give parts of it
      this.units = []; // words that know their times, in the order of these
      this.passed = 0; // how many of them have begun
      this.lit = null; // the one that is sung now
      this.touched = -Infinity; // when a person last moved in the lyrics

      this.audio.controls = false;
      this.audio.hidden = true;
      this.button.hidden = false;
      this.button.addEventListener("click", () => this.toggle());
      this.line.tabIndex = 0;
      this.line.setAttribute("role", "slider");
      this.line.setAttribute("aria-valuemin", "0");
      this.line.setAttribute("aria-valuemax", item.seconds.toFixed(2));
      this.line.dataset.label = "seek";
      this.line.addEventListener("pointerdown", (event) => this.drag(event));
      this.line.addEventListener("keydown", (event) => this.key(event));
      this.audio.addEventListener("play", () => this.started());
      this.audio.addEventListener("pause", () => this.stopped());
      this.audio.addEventListener("ended", () => this.stopped());
      this.audio.addEventListener("seeked", () => this.show());
      this.audio.addEventListener("timeupdate", () => this.show());
      this.audio.addEventListener("error", () => this.broken());
      this.audio.addEventListener("loadedmetadata", () => { if (this.wanted !== null) this.seek(this.wanted); });
      if (this.audio.error) this.broken();
      this.write_lyrics();
    }

    get time() {
      return this.wanted ?? Math.min(this.audio.currentTime, this.item.seconds);
    }

    toggle() {
      if (this.audio.paused) this.audio.play().catch(() => this.stopped());
      else this.audio.pause();
    }

    started() {
      this.article.classList.add("playing");
      this.button.dataset.label = "pause";
      this.button.setAttribute("aria-label", words.pause);
      const step = () => {
        this.show();
        if (!this.audio.paused) requestAnimationFrame(step);
      };
      step();
    }

    stopped() {
      this.article.classList.remove("playing");
      this.button.dataset.label = "play";
      this.button.setAttribute("aria-label", words.play);
      this.show();
    }

    broken() {
      this.article.querySelector(".broken").hidden = false;
      this.stopped();
    }

    // Go to a time. A server that sends whole files only (python -m http.server is one) leaves the sound without a
    // way to jump; then the file is fetched once and played from memory.
    seek(seconds) {
      const to = Math.max(0, Math.min(seconds, this.item.seconds));
      const audio = this.audio;
      this.wanted = to;
      this.show();
      if (audio.readyState < 1) {
        if (!this.whole) audio.load();
        return;
      }
      const end = audio.seekable.length ? audio.seekable.end(audio.seekable.length - 1) : 0;
      if (to <= end || this.whole || !location.protocol.startsWith("http")) {
        audio.currentTime = to;
        this.wanted = null;
        return;
      }
      const playing = !audio.paused;
      this.whole = fetch(audio.currentSrc || audio.src)
        .then((answer) => (answer.ok ? answer.blob() : Promise.reject(answer.status)))
        .then((blob) => {
          audio.src = URL.createObjectURL(blob); // "loadedmetadata" then goes to this.wanted
          if (playing) return audio.play();
        })
        .catch(() => this.broken());
    }

    drag(event) {
      if (event.button !== 0) return;
      const seek = (at) => {
        const box = this.line.getBoundingClientRect();
        this.seek(((at.clientX - box.left) / box.width) * this.item.seconds);
      };
      this.line.setPointerCapture(event.pointerId);
      this.line.addEventListener("pointermove", seek);
      const done = () => this.line.removeEventListener("pointermove", seek);
      this.line.addEventListener("pointerup", done, { once: true });
      this.line.addEventListener("pointercancel", done, { once: true });
      seek(event);
    }

    key(event) {
      const small = Math.max(this.item.seconds / 100, 0.1), large = Math.max(this.item.seconds / 10, 1);
      const jumps = {
        ArrowRight: this.time + small, ArrowUp: this.time + small, PageUp: this.time + large,
        ArrowLeft: this.time - small, ArrowDown: this.time - small, PageDown: this.time - large,
        Home: 0, End: this.item.seconds,
      };
      if (event.key in jumps) this.seek(jumps[event.key]);
      else if (event.key === " " || event.key === "Enter") this.toggle();
      else return;
      event.preventDefault();
    }

    show() {
      const time = this.time, length = this.item.seconds;
      this.article.style.setProperty("--played", (length ? (100 * time) / length : 0) + "%");
      this.now.textContent = clock(time);
      this.line.setAttribute("aria-valuenow", time.toFixed(2));
      this.line.setAttribute("aria-valuetext", clock(time) + " " + words.of + " " + clock(length));
      this.light(time);
      if (this.audio.paused) this.write_commands(time);
    }

    // Commands that go on from the item, cut where it stands; from its end where it stands at an end.
    write_commands(time) {
      const places = this.article.querySelectorAll(".command code");
      this.item.commands.forEach(([text, name, seconds], n) => {
        const cut = Math.floor(time * 100 + 0.01) / 100;
        const inside = seconds > 0 && cut >= 0.05 && cut <= seconds - 0.05;
        const short = (number) => String(Number(number.toFixed(2)));
        const parts = [text];
        if (inside) parts.push("--cut_at=" + short(cut));
        if (seconds > 0) parts.push("--sample_length_in_seconds=" + short((inside ? cut : seconds) + seconds));
        parts.push(quoted("--name=" + name + (inside ? "-" + short(cut) + "s" : "")));
        const command = parts.join(" ");
        if (places[n].textContent !== command) write_command(places[n], command);
      });
    }

    // Light the word of a time. Only what has changed since the last call is touched: a song may have thousands.
    light(time) {
      const units = this.units;
      let low = 0, high = units.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (units[middle].start <= time + 0.001) low = middle + 1; // sounds go to a millisecond near enough
        else high = middle;
      }
      for (let i = Math.min(low, this.passed); i < Math.max(low, this.passed); i++) {
        units[i].place.classList.toggle("sung", i < low);
      }
      this.passed = low;
      const last = units[low - 1];
      const lit = last && time < last.end ? last : null;
      if (lit !== this.lit) {
        if (this.lit) {
          this.lit.place.classList.remove("now");
          this.lit.place.removeAttribute("aria-current");
        }
        if (lit) {
          lit.place.classList.add("now");
          lit.place.setAttribute("aria-current", "true");
        }
        const row = lit && lit.place.parentElement;
        if (row && row !== this.row) {
          if (this.row) this.row.classList.remove("line");
          row.classList.add("line");
          this.row = row;
          this.follow(row);
        }
        this.lit = lit;
      }
      if (lit) {
        const share = Math.min(1, Math.max(0, (time - lit.start) / (lit.end - lit.start)));
        lit.place.style.setProperty("--sung", (100 * share).toFixed(1) + "%");
      }
    }

    // Keep the line that is sung in sight inside the lyrics, unless somebody reads elsewhere in them; the page stays.
    follow(row) {
      const list = this.list;
      if (list.scrollHeight <= list.clientHeight || performance.now() - this.touched < 4000) return;
      const top = row.offsetTop - (list.clientHeight - row.offsetHeight) / 2;
      list.scrollTo({ top, behavior: this.audio.paused || still.matches ? "auto" : "smooth" });
    }

    // Words [text, start, end, reading]; one that knows its time is lit when it is sung, and is a way to go there.
    write_lyrics() {
      const list = (this.list = this.article.querySelector("ol.lyrics"));
      this.row = null;
      if (!list) return;
      let row = list.appendChild(document.createElement("li"));
      for (const [text, start, end, reading] of this.item.words) {
        text.split("\n").forEach((part, n) => {
          if (n) row = list.appendChild(document.createElement("li"));
          if (part) this.write_word(row, part, start, end, n ? "" : reading);
        });
      }
      for (const line of list.children) {
        if (/^\s*\[[^\]]*\]\s*$/.test(line.textContent)) line.classList.add("tag");
      }
      while (list.lastChild && !list.lastChild.textContent.trim()) list.lastChild.remove();
      this.units.sort((a, b) => a.start - b.start);
      if (!this.units.length) return;
      list.classList.add("timed");
      this.stop_at(this.units[0].place);
      const hint = document.createElement("p");
      hint.className = "hint";
      hint.id = "hint-" + this.item.index;
      hint.dataset.word = "sing_along";
      list.after(hint);
      list.setAttribute("aria-describedby", hint.id);
      list.addEventListener("keydown", (event) => this.walk(event));
      list.addEventListener("focusin", (event) => { if (event.target !== list) this.stop_at(event.target); });
      for (const kind of ["wheel", "touchmove", "keydown"]) {
        list.addEventListener(kind, () => { this.touched = performance.now(); }, { passive: true });
      }
    }

    write_word(row, text, start, end, reading) {
      const timed = start !== null && end !== null;
      const place = row.appendChild(document.createElement(timed ? "button" : "span"));
      if (reading) {
        const ruby = place.appendChild(document.createElement("ruby"));
        ruby.append(text, Object.assign(document.createElement("rt"), { textContent: reading }));
      } else place.textContent = text;
      if (!timed) return;
      place.type = "button";
      place.tabIndex = -1;
      place.addEventListener("click", () => {
        this.touched = -Infinity;
        this.seek(start);
      });
      this.units.push({ place, start, end });
    }

    // One word at a time can be reached with Tab; arrow keys go on from there.
    stop_at(place) {
      if (this.stop) this.stop.tabIndex = -1;
      this.stop = place;
      place.tabIndex = 0;
    }

    walk(event) {
      const places = [...this.list.querySelectorAll("button")];
      const at = places.indexOf(document.activeElement);
      if (at < 0) return;
      const lines = [...new Set(places.map((place) => place.parentElement))];
      const line = lines.indexOf(places[at].parentElement);
      const first = (row) => row && row.querySelector("button");
      const goal = {
        ArrowRight: places[at + 1], ArrowLeft: places[at - 1], Home: places[0], End: places[places.length - 1],
        ArrowDown: first(lines[line + 1]), ArrowUp: first(lines[line - 1]),
      }[event.key];
      if (!goal) return;
      event.preventDefault();
      goal.focus();
    }
  }

  // Lines of a command break at its spaces only: browsers break after hyphens, too, and "--" alone is no option.
  const write_command = (place, command) => {
    const pieces = command.split(" ").map((piece) => element("span", "", piece));
    place.replaceChildren(...pieces.flatMap((piece, n) => (n ? [" ", piece] : [piece])));
  };

  // As a shell reads it.
  const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : "'" + text.replaceAll("'", "'\"'\"'") + "'");

  const copy = async (button) => {
    const code = button.parentElement.querySelector("code");
    let done = false;
    try {
      await navigator.clipboard.writeText(code.textContent);
      done = true;
    } catch { // not everywhere may a page that is opened as a file write to the clipboard
      getSelection().selectAllChildren(code);
      try { done = document.execCommand("copy"); } catch { done = false; }
    }
    button.dataset.word = done ? "copied" : "copy_by_hand";
    button.textContent = words[button.dataset.word];
    setTimeout(() => {
      button.dataset.word = "copy";
      button.textContent = words.copy;
    }, 2500);
  };
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }

  // One sound at a time.
  document.addEventListener("play", (event) => {
    for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
  }, true);

  // ---- the family of the run: a script beside the page, since a page that is opened as a file cannot read data
  const element = (tag, name, ...inside) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...inside);
    return made;
  };
  const word = (key, tag = "span") => {
    const made = element(tag, "");
    made.dataset.word = key;
    made.textContent = words[key];
    return made;
  };

  const take = (item, base) => {
    const row = element("li", "take", element("span", "number", word("item"), " " + item.item));
    if (item.from !== null) row.append(element("small", "", word("from_item"), " " + item.from));
    if (item.seed) row.append(element("small", "", word("seed"), " " + item.seed));
    const audio = element("audio", "");
    audio.controls = true;
    audio.preload = "none";
    audio.src = base + item.sound;
    row.append(audio);
    return row;
  };

  const run = (node, base) => {
    const title = element(node.page && !node.here ? "a" : "b", "title", node.title);
    if (node.page && !node.here) title.href = base + node.page;
    const head = element("p", "run", title);
    if (node.here) head.append(word("here", "em"));
    const kinds = { continue: "went_on", upsample: "refined" };
    if (node.mode in kinds) head.append(word(kinds[node.mode], "small"));
    if (typeof node.kept === "number") head.append(element("small", "", word("kept"), " " + Number(node.kept.toFixed(2)) + " s"));
    if (typeof node.seconds === "number") head.append(element("small", "", word("length"), " " + Number(node.seconds.toFixed(2)) + " s"));
    if (node.level > 0) head.append(element("small", "", word("level"), " " + node.level));
    if (node.gone) head.append(word("gone", "small"));
    else if (!node.items.length) head.append(word("not_yet", "small"));
    const place = element("li", node.here ? "here" : "", head);
    if (node.items.length) place.append(element("ul", "takes", ...node.items.map((item) => take(item, base))));
    return place;
  };

  const grow = (nodes, base) => {
    if (!Array.isArray(nodes) || nodes.length < 2) return;
    const section = document.getElementById("tree");
    const places = nodes.map((node) => run(node, base));
    const first = section.appendChild(element("ul", "runs"));
    nodes.forEach((node, n) => {
      const above = node.parent >= 0 ? places[node.parent] : null;
      if (!above) first.append(places[n]);
      else (above.querySelector(":scope > ul.runs") ?? above.appendChild(element("ul", "runs"))).append(places[n]);
    });
    section.hidden = false;
  };

  if (data.tree) {
    const script = element("script", "");
    script.src = data.tree;
    script.addEventListener("load", () => grow(window.songbloomTree, data.tree.slice(0, data.tree.lastIndexOf("/") + 1)));
    document.body.append(script);
  }

  for (const place of document.querySelectorAll("code")) write_command(place, place.textContent);
  const players = data.items.map((item) => new Player(document.getElementById("item-" + item.index), item));
  const native = (navigator.language || "").toLowerCase().startsWith("ja") ? "ja" : "en";
  const chosen = remembered();
  speak(chosen in data.words ? chosen : native);
})();
