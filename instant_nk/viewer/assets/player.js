// The offline 3-D player: decodes the animation that viewer/player.py packed and draws it with WebGL 2.
// The fragment's elements are found from the script's own parent, so that a page may hold several players.
(() => {
  "use strict";
  const root = document.currentScript.parentElement;
  const find = (name) => root.querySelector(".nk-" + name);
  const meta = JSON.parse(find("meta").textContent);
  const canvas = root.querySelector("canvas");

  const FIELD_OF_VIEW = 0.7; // radians, vertical

  const fail = (text) => {
    find("message").textContent = text;
    root.dataset.state = "failed";
  };

  // ---- decoding: gzip -> byte planes -> zigzag -> differences along vertices, then along frames, modulo 2^bits

  async function inflate(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function unpackPlanes(bytes, piece) {
    const { offset, count, planes } = piece;
    const values = new Int32Array(count);
    for (let p = 0; p < planes; p++) {
      const start = offset + p * count;
      for (let i = 0; i < count; i++) values[i] |= bytes[start + i] << (8 * p);
    }
    for (let i = 0; i < count; i++) values[i] = (values[i] >>> 1) ^ -(values[i] & 1);
    return values;
  }

  // Positions of all frames, u16 within the box of the animation: [frames][points * 3].
  function unpackTrack(bytes, piece, frames) {
    const values = unpackPlanes(bytes, piece);
    const width = values.length / frames;
    const result = [];
    for (let f = 0; f < frames; f++) {
      const now = new Uint16Array(width);
      const before = result[f - 1];
      for (let i = 0; i < width; i++) {
        const change = values[f * width + i] + (i >= 3 ? now[i - 3] - (before ? before[i - 3] : 0) : 0);
        now[i] = (before ? before[i] : 0) + change;
      }
      result.push(now);
    }
    return result;
  }

  function unpackIndices(bytes, piece) {
    const values = unpackPlanes(bytes, piece);
    for (let i = 1; i < values.length; i++) values[i] += values[i - 1];
    return new Uint32Array(values);
  }

  // ---- small vector algebra; matrices are column-major as WebGL wants them

  const sub = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
  const add = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const unit = (a) => {
    const n = Math.hypot(...a) || 1;
    return [a[0] / n, a[1] / n, a[2] / n];
  };

  function viewMatrix(eye, target, up) {
    const back = unit(sub(eye, target));
    const right = unit(cross(up, back));
    const above = cross(back, right);
    return { right, above, matrix: [right[0], above[0], back[0], 0, right[1], above[1], back[1], 0, right[2], above[2], back[2], 0, -dot(right, eye), -dot(above, eye), -dot(back, eye), 1] };
  }

  function projectionMatrix(fovY, aspect, near, far) {
    const f = 1 / Math.tan(fovY / 2);
    return [f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, (2 * far * near) / (near - far), 0];
  }

  // ---- shaders

  const SURFACE_VERTEX = `#version 300 es
    in vec3 position; in vec3 normal; in vec3 colour; in vec2 uv;
    uniform mat4 view, projection;
    out vec3 vNormal, vView, vColour; out vec2 vUv;
    void main() {
      vec4 p = view * vec4(position, 1.0);
      vView = p.xyz; vNormal = mat3(view) * normal; vColour = colour; vUv = uv;
      gl_Position = projection * p;
    }`;
  const SURFACE_FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 vNormal, vView, vColour; in vec2 vUv;
    uniform int mode; uniform bool textured; uniform sampler2D image; uniform vec2 depthRange;
    out vec4 result;
    void main() {
      vec3 n = normalize(vNormal);
      vec3 toEye = normalize(-vView);
      if (dot(n, toEye) < 0.0) n = -n;
      vec3 albedo = textured ? texture(image, vUv).rgb : vColour;
      float light = 0.45 + 0.35 * max(dot(n, toEye), 0.0) + 0.3 * max(dot(n, normalize(vec3(0.5, 0.8, 0.4))), 0.0);
      if (mode == 0) result = vec4(albedo * light, 1.0);
      else if (mode == 1) result = vec4(albedo, 1.0);
      else if (mode == 2) result = vec4(vec3(0.82, 0.80, 0.78) * light, 1.0);
      else if (mode == 3) result = vec4(n * 0.5 + 0.5, 1.0);
      else result = vec4(vec3(1.0 - 0.85 * clamp((-vView.z - depthRange.x) / (depthRange.y - depthRange.x), 0.0, 1.0)), 1.0);
    }`;
  const LINE_VERTEX = `#version 300 es
    in vec3 position; uniform mat4 view, projection; uniform float pull, pointSize;
    void main() {
      vec4 p = view * vec4(position, 1.0);
      p.xyz *= 1.0 - pull; // towards the eye, so that lines lie before the surface they belong to
      gl_Position = projection * p; gl_PointSize = pointSize;
    }`;
  const LINE_FRAGMENT = `#version 300 es
    precision highp float; uniform vec4 ink; uniform bool dots; out vec4 result;
    void main() {
      if (dots && length(gl_PointCoord - 0.5) > 0.5) discard; // round
      result = ink;
    }`;

  function link(gl, vertex, fragment) {
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    ["position", "normal", "colour", "uv"].forEach((name, i) => gl.bindAttribLocation(program, i, name));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    return { program, at: (name) => gl.getUniformLocation(program, name) };
  }

  // ---- geometry of one moment, between two frames

  class Surface {
    constructor(frames, faces, low, step) {
      Object.assign(this, { frames, faces, low, step });
      this.positions = new Float32Array(frames[0].length);
      this.normals = new Float32Array(frames[0].length);
    }
    set(time) {
      blend(this.frames, time, this.low, this.step, this.positions);
      const { positions: p, normals: n, faces } = this;
      n.fill(0);
      for (let t = 0; t < faces.length; t += 3) {
        const a = 3 * faces[t], b = 3 * faces[t + 1], c = 3 * faces[t + 2];
        const ux = p[b] - p[a], uy = p[b + 1] - p[a + 1], uz = p[b + 2] - p[a + 2];
        const vx = p[c] - p[a], vy = p[c + 1] - p[a + 1], vz = p[c + 2] - p[a + 2];
        const x = uy * vz - uz * vy, y = uz * vx - ux * vz, z = ux * vy - uy * vx;
        n[a] += x; n[a + 1] += y; n[a + 2] += z;
        n[b] += x; n[b + 1] += y; n[b + 2] += z;
        n[c] += x; n[c + 1] += y; n[c + 2] += z;
      }
      for (let i = 0; i < n.length; i += 3) {
        const s = 1 / (Math.hypot(n[i], n[i + 1], n[i + 2]) || 1);
        n[i] *= s; n[i + 1] *= s; n[i + 2] *= s;
      }
    }
  }

  function blend(frames, time, low, step, out) {
    const first = Math.min(Math.floor(time), frames.length - 1), next = Math.min(first + 1, frames.length - 1), s = time - first;
    const a = frames[first], b = frames[next];
    for (let i = 0; i < out.length; i++) out[i] = low[i % 3] + step * (a[i] + s * (b[i] - a[i]));
  }

  function gather(source, index, out) {
    for (let i = 0; i < index.length; i++) {
      const j = 3 * index[i];
      out[3 * i] = source[j]; out[3 * i + 1] = source[j + 1]; out[3 * i + 2] = source[j + 2];
    }
    return out;
  }

  function uniqueEdges(faces, count) {
    const seen = new Set();
    const result = [];
    for (let t = 0; t < faces.length; t += 3)
      for (const [a, b] of [[faces[t], faces[t + 1]], [faces[t + 1], faces[t + 2]], [faces[t + 2], faces[t]]]) {
        const key = a < b ? a * count + b : b * count + a;
        if (!seen.has(key)) { seen.add(key); result.push(a, b); }
      }
    return new Uint32Array(result);
  }

  // ---- the player

  async function start() {
    if (typeof DecompressionStream === "undefined") return fail("This browser cannot unpack the animation (no DecompressionStream). Use a current Firefox, Chrome, Edge or Safari.");
    const gl = canvas.getContext("webgl2", { antialias: true });
    if (!gl) return fail("This browser offers no WebGL 2, so the animation cannot be shown in 3-D.");
    const bytes = await inflate(find("data").textContent);
    find("data").remove(); // the packed text is no longer needed
    const pieces = meta.pieces;
    const frames = unpackTrack(bytes, pieces.positions, meta.frames.length);
    const faces = unpackIndices(bytes, pieces.faces);
    const surface = new Surface(frames, faces, meta.low, meta.step);
    const split = pieces.vertex_of ? unpackIndices(bytes, pieces.vertex_of) : null; // a textured mesh doubles vertices along seams
    const drawFaces = split ? unpackIndices(bytes, pieces.uv_faces) : faces;
    const nodes = pieces.nodes ? unpackTrack(bytes, pieces.nodes, meta.frames.length) : null;
    const raw = (piece) => bytes.subarray(piece.offset, piece.offset + piece.count * piece.planes);

    const solid = link(gl, SURFACE_VERTEX, SURFACE_FRAGMENT), line = link(gl, LINE_VERTEX, LINE_FRAGMENT);
    const buffer = (target, data) => {
      const handle = gl.createBuffer();
      gl.bindBuffer(target, handle);
      gl.bufferData(target, data, target === gl.ARRAY_BUFFER ? gl.DYNAMIC_DRAW : gl.STATIC_DRAW);
      return handle;
    };
    const attribute = (slot, handle, size, type = gl.FLOAT, normalized = false) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, handle);
      gl.enableVertexAttribArray(slot);
      gl.vertexAttribPointer(slot, size, type, normalized, 0, 0);
    };
    const drawCount = split ? split.length : frames[0].length / 3;
    const drawPositions = split ? new Float32Array(3 * drawCount) : surface.positions;
    const drawNormals = split ? new Float32Array(3 * drawCount) : surface.normals;

    const mesh = gl.createVertexArray();
    gl.bindVertexArray(mesh);
    const positionBuffer = buffer(gl.ARRAY_BUFFER, drawPositions), normalBuffer = buffer(gl.ARRAY_BUFFER, drawNormals);
    attribute(0, positionBuffer, 3);
    attribute(1, normalBuffer, 3);
    if (pieces.colours) attribute(2, buffer(gl.ARRAY_BUFFER, new Uint8Array(raw(pieces.colours))), 3, gl.UNSIGNED_BYTE, true);
    if (split) {
      const uv = unpackPlanes(bytes, pieces.uv);
      attribute(3, buffer(gl.ARRAY_BUFFER, new Uint16Array(uv)), 2, gl.UNSIGNED_SHORT, true);
    }
    buffer(gl.ELEMENT_ARRAY_BUFFER, drawFaces);
    const lines = (positions, indices) => {
      const array = gl.createVertexArray();
      gl.bindVertexArray(array);
      const handle = buffer(gl.ARRAY_BUFFER, positions);
      attribute(0, handle, 3);
      buffer(gl.ELEMENT_ARRAY_BUFFER, indices);
      return { array, handle, count: indices.length };
    };
    let wire = null; // built when first asked for
    const graphPositions = nodes ? new Float32Array(nodes[0].length) : null;
    const graph = nodes ? lines(graphPositions, unpackIndices(bytes, pieces.edges)) : null;
    const floorLines = floorGrid();
    const floor = lines(floorLines, Uint32Array.from({ length: floorLines.length / 3 }, (_, i) => i));
    gl.bindVertexArray(null);
    const textures = new Array(meta.images.length).fill(null); // of one image for all frames, or one per frame; decoded when first shown
    let picture = null; // the one that is shown
    const textureAt = async (k) => { textures[k] = "pending"; textures[k] = await loadTexture(gl, meta.images[k]); dirty = true; };

    // -- state and controls
    const high = meta.low.map((v, k) => v + meta.extent[k]);
    const centre = meta.low.map((v, k) => (v + high[k]) / 2);
    const size = Math.hypot(...meta.extent) || 1;
    const up = unit(meta.up);
    const side = unit(cross(Math.abs(up[1]) < 0.9 ? [0, 1, 0] : [0, 0, 1], up)), front = cross(side, up);
    const away = meta.eye ? sub(meta.eye, centre) : add(front, up, 0.15);
    const home = () => {
      const d = unit(away), right = unit(cross(up, d)), above = cross(d, right), slope = Math.tan(FIELD_OF_VIEW / 2);
      const aspect = canvas.clientWidth / Math.max(canvas.clientHeight, 1);
      let distance = 0; // so far that every corner of the box is in the picture
      for (let k = 0; k < 8; k++) {
        const corner = meta.extent.map((e, axis) => ((k >> axis) & 1 ? e : -e) / 2);
        distance = Math.max(distance, dot(corner, d) + 1.08 * Math.max(Math.abs(dot(corner, above)), Math.abs(dot(corner, right)) / aspect) / slope);
      }
      return { yaw: Math.atan2(dot(d, side), dot(d, front)), pitch: Math.asin(Math.max(-0.99, Math.min(0.99, dot(d, up)))), distance, target: centre.slice() };
    };
    let orbit = home(), time = 0, playing = false, last = 0, dirty = true, shown = -1;
    const wanted = new URLSearchParams(location.hash.slice(1)); // #frame=12&shading=normals&wireframe=1&graph=1
    if (wanted.has("frame")) time = Math.max(0, meta.frames.indexOf(Number(wanted.get("frame"))));
    if (wanted.has("shading")) for (const option of find("shading").options) option.selected = option.text === wanted.get("shading");
    for (const name of ["wireframe", "graph"]) if (wanted.has(name) && find(name)) find(name).checked = true;

    const nearest = () => Math.min(Math.round(time), meta.frames.length - 1);
    if (textures.length) await textureAt(textures.length > 1 ? nearest() : 0);

    const slider = find("time"), play = find("play"), label = find("frame");
    slider.max = meta.frames.length - 1;
    const video = meta.video ? document.getElementById(meta.video) : null;
    if (video) for (const name of ["loadeddata", "seeked"]) video.addEventListener(name, () => { dirty = true; }); // it may have missed where the slider went meanwhile
    const seek = (value) => { time = Math.max(0, Math.min(meta.frames.length - 1, value)); dirty = true; };
    const toggle = () => { playing = !playing; play.textContent = playing ? "❚❚" : "▶"; play.setAttribute("aria-label", playing ? "pause" : "play"); last = performance.now(); dirty = true; };
    slider.addEventListener("input", () => { if (playing) toggle(); seek(Number(slider.value)); });
    play.addEventListener("click", toggle);
    root.querySelectorAll(".nk-bar input, .nk-bar select").forEach((e) => e.addEventListener("input", () => { dirty = true; }));
    canvas.addEventListener("keydown", (event) => {
      const act = { " ": toggle, ArrowRight: () => seek(Math.floor(time) + 1), ArrowLeft: () => seek(Math.ceil(time) - 1), Home: () => { orbit = home(); dirty = true; } }[event.key];
      if (act) { act(); event.preventDefault(); }
    });

    // -- orbit: drag turns, right drag or two fingers move, wheel or pinch zooms, double click returns
    const fingers = new Map();
    canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, [e.clientX, e.clientY]); });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (e) => fingers.delete(e.pointerId));
    canvas.addEventListener("pointermove", (e) => {
      const before = fingers.get(e.pointerId);
      if (!before) return;
      const dx = e.clientX - before[0], dy = e.clientY - before[1], scale = 1 / canvas.clientHeight;
      if (fingers.size === 2) {
        const other = [...fingers].find(([id]) => id !== e.pointerId)[1];
        const spread = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
        zoom(spread(before) / Math.max(spread([e.clientX, e.clientY]), 1));
        move(dx / 2, dy / 2, scale);
      } else if (e.buttons & 2 || e.shiftKey) move(dx, dy, scale);
      else {
        orbit.yaw -= 3 * dx * scale;
        orbit.pitch = Math.max(-1.5, Math.min(1.5, orbit.pitch + 3 * dy * scale));
      }
      fingers.set(e.pointerId, [e.clientX, e.clientY]);
      dirty = true;
    });
    const zoom = (factor) => { orbit.distance = Math.max(0.05 * size, Math.min(20 * size, orbit.distance * factor)); dirty = true; };
    const move = (dx, dy, scale) => {
      const { right, above } = viewMatrix(eyeOf(), orbit.target, up);
      orbit.target = add(add(orbit.target, right, -dx * scale * orbit.distance * FIELD_OF_VIEW), above, dy * scale * orbit.distance * FIELD_OF_VIEW);
    };
    canvas.addEventListener("wheel", (e) => { zoom(Math.exp(0.001 * e.deltaY)); e.preventDefault(); }, { passive: false });
    canvas.addEventListener("contextmenu", (e) => e.preventDefault());
    canvas.addEventListener("dblclick", () => { orbit = home(); dirty = true; });
    new ResizeObserver(() => { dirty = true; }).observe(canvas);

    function eyeOf() {
      const c = Math.cos(orbit.pitch);
      const d = add(add(side.map((v) => v * c * Math.sin(orbit.yaw)), front, c * Math.cos(orbit.yaw)), up, Math.sin(orbit.pitch));
      return add(orbit.target, d, orbit.distance);
    }

    function floorGrid() {
      const upward = unit(meta.up), across = unit(cross(Math.abs(upward[1]) < 0.9 ? [0, 1, 0] : [0, 0, 1], upward)), along = cross(across, upward);
      const middle = meta.low.map((v, k) => v + meta.extent[k] / 2), half = Math.hypot(...meta.extent) / 2;
      const below = add(middle, upward, meta.floor - dot(middle, upward));
      const points = [];
      for (let i = -5; i <= 5; i++)
        for (const [a, b] of [[across, along], [along, across]])
          points.push(...add(add(below, a, (i * half) / 5), b, -half), ...add(add(below, a, (i * half) / 5), b, half));
      return new Float32Array(points);
    }

    function draw() {
      const ratio = Math.min(window.devicePixelRatio || 1, 2);
      const w = Math.max(1, Math.round(canvas.clientWidth * ratio)), h = Math.max(1, Math.round(canvas.clientHeight * ratio));
      if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
      if (shown !== time) {
        surface.set(time);
        if (split) { gather(surface.positions, split, drawPositions); gather(surface.normals, split, drawNormals); }
        for (const [handle, data] of [[positionBuffer, drawPositions], [normalBuffer, drawNormals]]) {
          gl.bindBuffer(gl.ARRAY_BUFFER, handle);
          gl.bufferSubData(gl.ARRAY_BUFFER, 0, data);
        }
        if (graph) {
          blend(nodes, time, meta.low, meta.step, graphPositions);
          gl.bindBuffer(gl.ARRAY_BUFFER, graph.handle);
          gl.bufferSubData(gl.ARRAY_BUFFER, 0, graphPositions);
        }
        shown = time;
      }
      const eye = eyeOf(), { matrix } = viewMatrix(eye, orbit.target, up);
      const projection = projectionMatrix(FIELD_OF_VIEW, w / h, orbit.distance * 0.02, orbit.distance + 4 * size);
      const background = find("background").value;
      const paper = [1, 3, 5].map((i) => parseInt(background.slice(i, i + 2), 16) / 255);
      const ink = paper[0] + paper[1] + paper[2] > 1.5 ? 0 : 1;
      gl.viewport(0, 0, w, h);
      gl.clearColor(...paper, 1);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.enable(gl.DEPTH_TEST);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);

      gl.useProgram(solid.program);
      gl.uniformMatrix4fv(solid.at("view"), false, matrix);
      gl.uniformMatrix4fv(solid.at("projection"), false, projection);
      gl.uniform1i(solid.at("mode"), Number(find("shading").value));
      gl.uniform1i(solid.at("textured"), textures.length ? 1 : 0);
      const k = textures.length > 1 ? nearest() : 0;
      for (const wanted of textures.length ? [k, (k + 1) % textures.length] : [])
        if (!textures[wanted]) textureAt(wanted).catch((error) => fail(error.message));
      if (textures[k] instanceof WebGLTexture) picture = textures[k]; // until it is decoded the one before stays
      gl.bindTexture(gl.TEXTURE_2D, picture);
      const reach = Math.hypot(...sub(eye, centre));
      gl.uniform2f(solid.at("depthRange"), reach - size / 2, reach + size / 2);
      gl.bindVertexArray(mesh);
      gl.drawElements(gl.TRIANGLES, drawFaces.length, gl.UNSIGNED_INT, 0);

      gl.useProgram(line.program);
      gl.uniformMatrix4fv(line.at("view"), false, matrix);
      gl.uniformMatrix4fv(line.at("projection"), false, projection);
      const stroke = (what, mode, count, colour, pull, pointSize = 1) => {
        gl.bindVertexArray(what.array);
        gl.uniform4f(line.at("ink"), ...colour);
        gl.uniform1f(line.at("pull"), pull);
        gl.uniform1f(line.at("pointSize"), pointSize);
        gl.uniform1i(line.at("dots"), mode === gl.POINTS ? 1 : 0);
        if (mode === gl.POINTS) gl.drawArrays(mode, 0, count); else gl.drawElements(mode, count, gl.UNSIGNED_INT, 0);
      };
      stroke(floor, gl.LINES, floor.count, [ink, ink, ink, 0.18], 0);
      if (find("wireframe").checked) {
        wire ??= lines(surface.positions, uniqueEdges(faces, frames[0].length / 3));
        gl.bindBuffer(gl.ARRAY_BUFFER, wire.handle);
        gl.bufferSubData(gl.ARRAY_BUFFER, 0, surface.positions);
        stroke(wire, gl.LINES, wire.count, [0.05, 0.1, 0.2, 0.45], 0.001);
      }
      if (graph && find("graph").checked) {
        for (const [hidden, edge, node] of [[true, 0.12, 0.15], [false, 0.9, 1]]) { // what the surface hides shines through
          if (hidden) gl.disable(gl.DEPTH_TEST); else gl.enable(gl.DEPTH_TEST);
          stroke(graph, gl.LINES, graph.count, [0.95, 0.45, 0.1, edge], 0.01);
          stroke(graph, gl.POINTS, graphPositions.length / 3, [0.8, 0.1, 0.1, node], 0.012, 6 * ratio);
        }
      }
      gl.bindVertexArray(null);
      const index = nearest();
      slider.value = index;
      label.textContent = `frame ${meta.frames[index]}`;
      if (video && video.readyState > 0 && !video.seeking) {
        const moment = (index + 0.5) / meta.fps;
        if (Math.abs(video.currentTime - moment) > 0.25 / meta.fps) video.currentTime = moment;
      }
      root.dataset.frame = meta.frames[index];
      root.dataset.state = "ready";
    }

    function tick(now) {
      if (playing) {
        const length = meta.frames.length;
        time = length > 1 ? (time + ((now - last) / 1000) * meta.fps) % length : 0; // the last frame is held for its time, then from the start
        last = now;
        dirty = true;
      }
      if (dirty) { dirty = false; draw(); }
      requestAnimationFrame(tick);
    }

    root.player = { seek: (frame) => seek(meta.frames.indexOf(frame)), toggle, redraw: () => { dirty = true; } };
    find("message").textContent = "";
    requestAnimationFrame(tick);
  }

  function loadTexture(gl, source) {
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => {
        const texture = gl.createTexture();
        gl.bindTexture(gl.TEXTURE_2D, texture);
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
        gl.generateMipmap(gl.TEXTURE_2D);
        gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
        for (const wrap of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, wrap, gl.CLAMP_TO_EDGE);
        resolve(texture);
      };
      image.onerror = () => reject(new Error("the texture cannot be decoded"));
      image.src = source;
    });
  }

  start().catch((error) => fail(`The animation cannot be shown: ${error.message}`));
})();
