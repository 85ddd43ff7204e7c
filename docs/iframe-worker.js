/* Search in a site that was opened from a disk. Browsers start no workers from file: URLs, so the script of the search
   runs in a hidden frame, which gets and sends the messages of a worker. Beside a server it is a worker as always. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow; // about:blank, of the page's own origin
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = inside.document.createElement("script");
      script.src = url;
      this.loaded = new Promise((resolve) => script.addEventListener("load", resolve));
      inside.document.body.append(script);
      this.inside = inside;
    }

    async postMessage(data) {
      await this.loaded; // the script's listener is there from then on; messages keep their order
      this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
