// A site that lies in a folder: browsers start no worker for pages of file:, so the search runs in a frame.
// mkdocs-material's plugin "offline" asks for a script of this name, and would fetch one from another host.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      frame.srcdoc = "<!DOCTYPE html>";
      this.waiting = [];
      frame.addEventListener("load", () => this.begin(frame.contentWindow, script), { once: true });
      document.documentElement.append(frame);
    }

    begin(scope, script) {
      const load = (source) =>
        new Promise((done, failed) => {
          const element = scope.document.createElement("script");
          Object.assign(element, { src: source, onload: done, onerror: failed });
          scope.document.head.append(element);
        });
      scope.importScripts = async (...sources) => {
        for (const source of sources) await load(source);
      };
      // Other windows can send messages to a frame, and none to a worker: what no script here made is dropped.
      const drop = (event) => event.isTrusted && event.stopImmediatePropagation();
      scope.addEventListener("message", drop, true);
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      load(script).then(() => {
        this.scope = scope;
        this.waiting.splice(0).forEach((data) => this.postMessage(data));
      });
    }

    postMessage(data) {
      if (!this.scope) return void this.waiting.push(data);
      this.scope.dispatchEvent(new this.scope.MessageEvent("message", { data }));
    }
  };
}
