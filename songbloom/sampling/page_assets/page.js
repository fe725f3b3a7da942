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
      this.units = [];

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
      for (const other of players) if (other !== this) other.audio.pause();
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
      for (const unit of this.units) {
        unit.place.classList.toggle("now", unit.start <= time && time < unit.end);
        unit.place.classList.toggle("sung", unit.end <= time);
      }
    }

    // Lines of {text, start, end}; a unit that knows its time is lit when it is sung, and is a way to go there.
    write_lyrics() {
      const list = this.article.querySelector(".lyrics");
      for (const line of this.item.lyrics) {
        const row = list.appendChild(document.createElement("li"));
        for (const unit of line) {
          const timed = unit.start !== null && unit.end !== null;
          const place = row.appendChild(document.createElement(timed ? "button" : "span"));
          place.textContent = unit.text;
          if (!timed) continue;
          place.type = "button";
          place.addEventListener("click", () => this.seek(unit.start));
          this.units.push({ place, start: unit.start, end: unit.end });
        }
      }
      list.hidden = this.item.lyrics.length === 0;
    }
  }

  const players = data.items.map((item) => new Player(document.getElementById("item-" + item.index), item));
  const native = (navigator.language || "").toLowerCase().startsWith("ja") ? "ja" : "en";
  const chosen = remembered();
  speak(chosen in data.words ? chosen : native);
})();
