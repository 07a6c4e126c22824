// Runs in the audio thread: hands the samples of the first channel over in blocks of about 0.1 s.
class Collector extends AudioWorkletProcessor {
  #block = new Float32Array(4096);
  #filled = 0;

  process([[samples]]) {
    if (!samples) return true;
    for (const sample of samples) {
      this.#block[this.#filled++] = sample;
      if (this.#filled === this.#block.length) {
        this.port.postMessage(this.#block);
        this.#block = new Float32Array(4096);
        this.#filled = 0;
      }
    }
    return true;
  }
}
registerProcessor("collector", Collector);
