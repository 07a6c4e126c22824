// Records from the microphone into a wav file. Browsers' own recorders write webm, which the server cannot decode.

const FAULTS = {
  NotAllowedError: "The browser may not use the microphone: allow it next to the address of this page, and record again.",
  NotFoundError: "No microphone was found: connect one, or choose a file.",
  NotReadableError: "The microphone is in use by another program: close it there, and record again.",
};

// Of a microphone with two channels, the mean: one of them may be silent.
const MONO = { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" };

// Starts recording. onLevel is called about ten times per second with the level, 0 to 1, and the seconds so far.
export async function record(onLevel) {
  if (!navigator.mediaDevices?.getUserMedia) throw new Error("This browser cannot record here: choose a file instead.");
  let stream;
  try {
    // As recorded: what the browser would filter out is part of what a model must cope with.
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    stream = await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw new Error(FAULTS[error.name] ?? `The microphone cannot be used (${error.name}): choose a file instead.`);
  }
  const context = new AudioContext();
  const blocks = [];
  const end = async () => {
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
  };
  try {
    await context.audioWorklet.addModule("microphone-worklet.js");
    const collector = new AudioWorkletNode(context, "collector", MONO);
    collector.port.onmessage = ({ data }) => {
      blocks.push(toInt16(data));
      const peak = data.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
      onLevel(Math.max(0, 1 + Math.log10(peak + 1e-6) / 3), (blocks.length * data.length) / context.sampleRate);
    };
    context.createMediaStreamSource(stream).connect(collector);
    await context.resume();
  } catch (error) {
    await end();
    throw new Error(`The microphone cannot be used (${error.name}): choose a file instead.`);
  }
  return {
    async stop() {
      await end();
      return wav(blocks, context.sampleRate);
    },
  };
}

function toInt16(samples) {
  return Int16Array.from(samples, (sample) => Math.max(-32768, Math.min(32767, Math.round(sample * 32768))));
}

// A wav file of one channel and 16 bits: 44 bytes, then the samples.
function wav(blocks, rate) {
  const bytes = blocks.reduce((sum, block) => sum + block.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const write = (at, text) => [...text].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  write(0, "RIFF");
  header.setUint32(4, 36 + bytes, true);
  write(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true); // bytes per second
  header.setUint16(32, 2, true); // bytes per sample of all channels
  header.setUint16(34, 16, true); // bits
  write(36, "data");
  header.setUint32(40, bytes, true);
  return new Blob([header, ...blocks], { type: "audio/wav" });
}
